"""Runs the code blocks that come as JSON on stdin, each in a namespace of its own; prints what each printed as JSON.

They share a process, because most of a block's time is importing the frameworks.
"""

import contextlib
import io
import json
import linecache
import sys
import traceback


def main() -> None:
    """Input: a list of [name, code]. Output: a list of [what was printed, the error or None]."""
    done = []
    for name, code in json.load(sys.stdin):
        printed, error = io.StringIO(), None
        # So that tracebacks, and torch.compile, find the lines.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, name, "exec"), {"__name__": "__main__", "__file__": name})
        except (Exception, SystemExit):  # noqa: BLE001 - whatever an example raises is the test's result
            error = traceback.format_exc()
        done.append([printed.getvalue(), error])
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
