"""The sites of a federation: certificates, kits, register, and the SuperLink that they connect to."""
