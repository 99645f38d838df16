"""What an operator installs: strategy, aggregation, checkpoints, provisioning and reports. No torch."""
