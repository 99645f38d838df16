"""``python -m dpfpl_server`` is ``dpfpl-server``."""

from dpfpl_server.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
