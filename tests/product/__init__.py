"""What goes across all packages: layers, ways out for text, other users, hostile containers, the soak."""
