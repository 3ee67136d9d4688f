# What this container offers for carrying connections; one exec at the start of a session. POSIX sh.
# stdout: "AF probe 1", then "AF KEY VALUE" lines, then "AF probe end". Nothing is connected, written or left behind.

export LC_ALL=C
say() { printf 'AF %s %s\n' "$1" "$2"; }
has() { command -v "$1" >/dev/null 2>&1; }

say probe 1

if [ -n "$BASH_VERSION" ]; then say shell bash
else
  exe=
  has readlink && exe=$(readlink "/proc/$$/exe" 2>/dev/null)
  say shell "${exe##*/}"
fi

uid=
if has id; then uid=$(id -u 2>/dev/null)
else
  while read -r key value rest; do [ "$key" = Uid: ] && uid=$value; done 2>/dev/null </proc/self/status
fi
say uid "$uid"
has uname && say machine "$(uname -m 2>/dev/null)"

for tool in cat grep awk sed sleep ls; do has $tool && say tool $tool; done
has sleep && sleep 0.01 2>/dev/null && say tool fractional-sleep

if has bash; then
  say bash "$(bash -c 'echo "$BASH_VERSION"' 2>/dev/null </dev/null)"
  # A bash without network redirections looks for a file of that name. Port 0 is never connected to.
  case $(bash -c 'exec 3<>/dev/tcp/127.0.0.1/0' 2>&1 </dev/null) in
    *'No such file'* | *'irectory'*) ;;
    *) say devtcp yes ;;
  esac
fi

if has socat; then
  socat -V 2>/dev/null </dev/null | while read -r first second third rest; do
    [ "$first $second" = 'socat version' ] && say socat "$third"
  done
fi

# The flavour, not the name: `nc` is any of four programs.
flavour() {
  help=$("$@" -h 2>&1 </dev/null)
  case $help in
    *'applet not found'*) ;;
    *BusyBox*) say netcat "busybox $*" ;;
    *Ncat*) say netcat "ncat $*" ;;
    *'GNU netcat'*) say netcat "gnu $*" ;;
    *OpenBSD* | *'[-46'*)
      case $help in
        *'	-N'* | *'[-46'*N*n*']'*) say netcat "openbsd $*" ;;
        *) say netcat "openbsd-old $*" ;;
      esac ;;
    *'[v1.1'*) say netcat "traditional $*" ;;
    *) say netcat "unknown $*" ;;
  esac
}
for name in nc nc.openbsd ncat nc.traditional netcat; do has $name && flavour $name; done
has busybox && flavour busybox nc

say probe end
