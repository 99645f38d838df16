"""What a site's administrator would edit, for the simulation: ``python fill_in_kit.py KIT INDEX SITES``."""

import sys
from pathlib import Path

__all__ = ["fill_in"]

DATA = """[data]
source = "digits"
partition = "pathological"
num_sites = {sites}
site_index = {index}
"""
PLACEHOLDER = '[data]\nsource = "folder"'


def fill_in(kit: Path, index: int, sites: int) -> None:
    """Give the site its part of the built-in digits; a site.toml that was filled in before stays as it is."""
    site_file = kit / "site.toml"
    text = site_file.read_text(encoding="utf-8")
    if PLACEHOLDER in text:
        head, _, rest = text.partition("[data]\n")
        tail = rest[rest.index("[server]") :]
        site_file.write_text(f"{head}{DATA.format(sites=sites, index=index)}\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    fill_in(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
