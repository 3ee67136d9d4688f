#!/bin/sh
# Runs this example and checks it; see ../check.py.
exec "${PYTHON:-python3}" "$(dirname "$0")/../check.py" rules
