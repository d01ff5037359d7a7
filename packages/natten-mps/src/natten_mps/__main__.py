"""``python -m natten_mps COMMAND``: the command line."""

from .cli import main

raise SystemExit(main())
