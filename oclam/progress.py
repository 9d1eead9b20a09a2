"""A bar on a terminal, a line every 15 seconds elsewhere."""

import sys

from tqdm import tqdm


class Progress(tqdm):
    """tqdm with rate and time left, which prints whole lines where the output is no terminal."""

    def __init__(self, total: int, name: str, unit: str, initial: int = 0):
        self._terminal = sys.stderr.isatty()
        super().__init__(total=total, desc=name, unit=unit, initial=initial, unit_scale=True, dynamic_ncols=True,
                         mininterval=0.5 if self._terminal else 15.0)

    def display(self, msg=None, pos=None):
        if self._terminal:
            return super().display(msg, pos)
        print(msg or str(self), file=sys.stderr, flush=True)
        return True

    def close(self):
        if not self._terminal and not self.disable:
            self.display()
            self.disable = True
        super().close()
