"""``python -m dpfpl_client`` is ``dpfpl-client``."""

from dpfpl_client.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
