"""The privacy ledger: what a site's data have paid, and which data they are."""
