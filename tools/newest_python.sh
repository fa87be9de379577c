#!/bin/sh
# Print the newest CPython 3.11 or later on this machine: from PATH, or from pyenv where it is installed.
{
    for minor in 11 12 13 14 15 16; do command -v "python3.$minor"; done
    command -v pyenv >/dev/null && ls -d "$(pyenv root)"/versions/3.*/bin/python
} 2>/dev/null | while read -r python; do
    "$python" -c '
import sys
if sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final":
    print(*sys.version_info[:3], sys.executable)
' 2>/dev/null
done | sort -n -k1,1 -k2,2 -k3,3 | tail -1 | cut -d' ' -f4-
