"""The text tower: the model's own, and a fast exact one."""
