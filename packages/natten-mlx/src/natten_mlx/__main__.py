"""``python -m natten_mlx COMMAND``: the command line."""

from .cli import main

raise SystemExit(main())
