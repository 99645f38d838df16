"""What the administrator of a site sets up: settings, kit, first start, separation of users."""
