"""The commands of ``dpfpl-server``."""
