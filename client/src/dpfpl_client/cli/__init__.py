"""The commands of ``dpfpl-client``."""
