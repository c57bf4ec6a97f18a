from __future__ import annotations

from cotd.cli.app import main

main()
