"""metrics.jsonl and the event files: what is written, and what becomes of both when a run goes on."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from test_checkpoint import files_of_at_most

from gamix_jax.logs import MetricLog, holds_evaluation


def events(workdir):
    """By TFRecord's framing: length, its sum, content, its sum (TensorFlow's documentation of the format)."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_lines_and_points(tmp_path):
    with MetricLog(tmp_path, 0) as log:
        log.write(5, {"kl": 0.5, "psnr": 20.0})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 5, "kl": 0.5, "psnr": 20.0}
    (event,) = [event for event in events(tmp_path) if event.summary.value]
    assert event.step == 5
    assert {v.tag: v.simple_value for v in event.summary.value} == {
        "kl": 0.5,
        "psnr": 20.0,
    }


def test_what_lies_after_the_step_gone_on_from_is_dropped_or_hidden(tmp_path):
    with MetricLog(tmp_path, 0) as log:
        for step in (5, 10, 15):
            log.write(step, {"kl": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "k')  # killed as it wrote
    with MetricLog(tmp_path, 10) as log:
        log.write(15, {"kl": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15]
    assert json.loads(lines[-1])["kl"] == 0.25
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [1, 11]
    assert all(
        e.session_log.status == SessionLog.START
        for e in events(tmp_path)
        if e.HasField("session_log")
    )


def test_damaged_bytes_do_not_stop_a_run_that_goes_on(tmp_path):
    """As a power cut may leave them."""
    content = b'{"step": 5, "test/kl": 1.0}\n\x00\xff\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert holds_evaluation(tmp_path, 5)
    with MetricLog(tmp_path, 5):
        pass
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 5, "test/kl": 1.0}\n'


def test_nothing_that_json_does_not_know_is_written(tmp_path):
    with MetricLog(tmp_path, 0) as log, pytest.raises(ValueError, match="JSON"):
        log.write(5, {"kl": float("nan")})


# tensorboardX leaves a file open that it cannot flush.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_an_error_and_no_standstill(tmp_path):
    """tensorboardX's own SummaryWriter stood still for good after some ten lines."""

    def write_many():
        with MetricLog(tmp_path, 0) as log:
            for step in range(1000):
                log.write(step, {"kl": 0.5})

    with files_of_at_most(4096), pytest.raises(OSError, match="File too large"):
        write_many()
