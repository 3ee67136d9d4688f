"""Values that every other package uses: nothing here imports another part of autoforward but its errors."""
