"""Flower's side of a site, without torch: the ClientApp, the SuperNode and how they are started."""
