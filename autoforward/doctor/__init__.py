"""What `autoforward doctor` looks at, on the host and in the container, and what it concludes."""
