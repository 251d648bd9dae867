"""A trace of some training steps, for TensorBoard and Perfetto."""

import re
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from gamix_jax.errors import InputError


def parse_steps(text: str) -> range:
    """START:STOP to the steps START..STOP-1, which begin when START steps of the run are done and end when STOP are.

    Raises:
      InputError: it is not two numbers, or there is no step between them.
    """
    found = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    steps = range(*map(int, found.groups())) if found else range(0)
    if not steps:
        raise InputError(
            f"--profile={text} must be START:STOP, numbers of steps with START < STOP, "
            "such as 100:110."
        )
    return steps


def check_steps(steps: range, last: int) -> None:
    """Refuses steps to trace that a run of `last` steps does not make.

    Raises:
      InputError: says which steps there are.
    """
    if steps.stop > last:
        raise InputError(
            f"--profile={steps.start}:{steps.stop} is not within the steps of this run, "
            f"0:{last}."
        )


def steps_left(steps: range, done: int, console: Console) -> range:
    """Those of the steps to trace that a run goes on to make, so that the same command goes on; says so where there are fewer."""
    left = range(max(steps.start, done), steps.stop)
    if left != steps:
        console.print(
            f"Of the steps of --profile={steps.start}:{steps.stop} {len(left) or 'none'} "
            f"{'are' if len(left) > 1 else 'is'} left to trace."
        )
    return left


class StepTrace:
    """Writes a trace of the chosen steps, and of what is done between them; of fewer where the run is stopped.

    The event "train" with `step_num` n is the wait for a batch and the call of the step
    that begins when n are done. Python's own calls are left out: there are too many for
    the viewers. Of several processes, which do the same steps, the first one is traced.

    Args:
      steps: to trace; none if empty.
      folder: to write below, plugins/profile/TIME/; made if missing.
      console: is told where it is written.
    """

    def __init__(self, steps: range, folder: Path, console: Console):
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._folder, self._console, self._begun = folder, console, False

    def step(self, number: int, state: Any) -> jax.profiler.StepTraceAnnotation:
        """A context for the wait for a batch and the call of a step; the trace begins with the first one, once all before it is done.

        Args:
          number: steps done before it.
          state: what it starts from.
        """
        if self._steps and number == self._steps.start:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._begun = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def end(self, done: int, state: Any) -> None:
        """Ends the trace if that many steps are its last, once they are done on the devices."""
        if self._begun and done == self._steps.stop:
            jax.block_until_ready(state)
            self._write()

    def _write(self) -> None:
        self._begun = False
        try:
            jax.profiler.stop_trace()
        except (jax.errors.JaxRuntimeError, OSError) as error:  # the run is worth more
            said = f"No trace could be written to {self._folder} ({error})."
            self._console.print(said, soft_wrap=True, markup=False)
        else:
            self._console.print(f"Trace written to {self._folder}", soft_wrap=True)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *exception) -> None:
        if self._begun:  # stopped on the way
            self._write()
