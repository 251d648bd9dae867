"""The one exception for what a user can mend."""

import errno

# Of a disk that takes no more: full, over its quota, a file above its limit.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """Bad input; the message is one sentence of cause and cure, which `main` prints without a traceback."""
