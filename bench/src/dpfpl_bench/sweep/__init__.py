"""Many simulated runs compared: tables and pictures."""
