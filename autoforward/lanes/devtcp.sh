# One relay over bash's /dev/tcp: needs bash and cat, nothing else.
#
#   bash -c "$(this file)" autoforward-relay HOST PORT [HOST PORT]...
#
# The addresses are tried in order; nothing reads stdin before one is connected. stderr: "AF pid N" for
# every attempt, bash's own words for one that failed, "AF open" once connected. A shell cannot shut down one direction of a socket:
# there is no half-close. When the server closes, the client's side is ended and waited for.

export LC_ALL=C
exec 4<&0
connected=
while [ $# -ge 2 ]; do
  echo "AF pid $$" >&2
  if { exec 3<>"/dev/tcp/$1/$2"; }; then connected=1; break; fi
  shift 2
done
[ -n "$connected" ] || exit 1
echo 'AF open' >&2
# Killed children stay as zombies unless their parent waits, and PID 1 of a container may not.
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 143' TERM HUP INT
cat <&4 >&3 &
upward=$!
cat <&3 4<&- &
wait $!
kill "$upward" 2>/dev/null
wait
