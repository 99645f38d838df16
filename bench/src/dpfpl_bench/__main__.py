"""``python -m dpfpl_bench`` is ``dpfpl-bench``."""

from dpfpl_bench.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
