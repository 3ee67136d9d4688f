# One relay over socat or a netcat: connects, then copies between its stdin/stdout and the server. POSIX sh.
#
#   sh -c "$(this file)" autoforward-relay FAIL_TEXT COMMAND [COMMAND]...
#
# Each COMMAND is a shell-quoted command line for one address, tried in order. Nothing reads stdin before it is
# connected, so no client byte is lost with a failed attempt. There is a further attempt only when FAIL_TEXT, which
# the tool says of a connection that was never made, was seen on stderr; or, when it starts with "!", when the rest of
# it, which the tool says once it is connected, was not. stderr: "AF pid N" for every attempt (the last one counts),
# then what the tool says.
# With one COMMAND this shell becomes it: no further process. With more it stays and waits for its children,
# also when it gets TERM (PID 1 of a container may reap nothing).

export LC_ALL=C
text=${1#!} first=
[ "$text" = "$1" ] || first=1
shift
if [ $# = 1 ]; then
  echo "AF pid $$" >&2
  eval "exec $1"
fi
trap : TERM HUP INT
exec 3<&0 4>&1
for command; do
  sh -c 'echo "AF pid $$" >&2; eval "exec $1"' autoforward-attempt "$command" <&3 2>&1 >&4 3<&- 4>&- |
    {
      exec 3<&- 4>&-
      failed=$first
      while IFS= read -r line; do
        case $line in *"$text"*) if [ -n "$first" ]; then failed=; else failed=1; fi ;; esac
        printf '%s\n' "$line" >&2
      done
      [ -z "$failed" ]
    } && exit 0
done
exit 1
