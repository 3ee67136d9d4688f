"""What people call a workspace, a compose project or a service: folders by any of their paths, and names near to one."""
