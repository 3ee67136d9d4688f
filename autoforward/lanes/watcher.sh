# autoforward's watcher: reports the listening sockets of this container, for as long as its stdin is open.
# POSIX sh (dash, bash, busybox ash); needs /proc and `sleep`, no writable directory, no particular user.
#
#   sh -c "$(this file)" autoforward-watcher SESSION_TOKEN POLL_INTERVAL_S SKIPS [close-wait]
#
# stdout: "AF hello ..." once, then complete snapshots, one whenever the content differs from the last one:
#   AF begin N / rows in the kernel's column order, volatile columns as 0 / AF end N
# stderr: owner INODE PID COMMAND LINE, once for each listening socket that is new; PID 0 when it was not to be found.
# stdin:  ping N | kill PID TOKEN | kill9 PID TOKEN | socks PID TOKEN; answers go to stderr.
# At EOF of stdin, or when stdout is gone: the poll loop is ended and waited for, processes of the session
# (AUTOFORWARD_SESSION=SESSION_TOKEN in their environment) get TERM and after 0.4 s KILL. PID 1 of a container is
# often `sleep`, which reaps nothing: every child is waited for here, or it stays as a zombie.

export LC_ALL=C
session=$1 interval=$2 skips=$3 want=$4
max_rows=2048
nl='
'
has() { command -v "$1" >/dev/null 2>&1; }

has sleep || { echo 'AF fatal no sleep in this container' >&2; exit 69; }
# Some busybox builds take whole seconds only, and would otherwise spin.
fraction=1
sleep 0.01 2>/dev/null || fraction=""
if [ -z "$fraction" ]; then
  case $interval in *.*) interval=${interval%.*}; [ "${interval:-0}" -gt 0 ] || interval=1 ;; esac
fi

if has grep; then filter=grep; elif has awk; then filter=awk; elif has sed; then filter=sed
elif has cat; then filter=cat; else filter=read; fi
# NUL ends a string for some greps (busybox without -z): then environments are read by the shell itself.
nul_grep=
if [ $filter = grep ]; then
  if printf 'a\0b' | grep -q -F -e b 2>/dev/null; then nul_grep='grep'
  elif printf 'a\0b' | grep -z -q -F -e b 2>/dev/null; then nul_grep='grep -z'; fi
fi
# Without these a command line cannot be read as it is: arguments are apart by NUL, which `read` drops.
names=
has ls && has dd && has tr && names=1
max_owners=64
max_news=512
state=0A
[ "$want" = close-wait ] && state='0A|08'

# The tables' interesting lines -> $raw. One fork: $( ) execs its only command in dash, bash and ash.
read_tables() {
  files=/proc/net/tcp
  [ -r /proc/net/tcp6 ] && files="$files /proc/net/tcp6"
  case $filter$state in
    grep0A) raw=$(grep -h -m $max_rows -F -e ':0000 0A ' $files 2>/dev/null) ;;
    grep*) raw=$(grep -h -m $max_rows -F -e ':0000 0A ' -e ' 08 ' $files 2>/dev/null) ;;
    awk*) raw=$(awk '/ 0A / || / 08 /' $files 2>/dev/null) ;;
    sed*) raw=$(sed -n -e '/ 0A /p' -e '/ 08 /p' $files 2>/dev/null) ;;
    cat*) raw=$(cat $files 2>/dev/null) ;;
    read*)
      raw=
      for file in $files; do
        while IFS= read -r line; do
          case $line in *' 0A '* | *' 08 '*) raw=$raw$nl$line ;; esac
        done <$file
      done ;;
  esac
}

# $raw -> $rows: only what identifies a socket. Queue lengths and reference counts move on a busy listener.
reduce() {
  rows="" k=0 count=0 listening=0 inodes=""
  for word in $raw; do
    case $word in *:) k=0 ;; *) k=$((k + 1)) ;; esac
    case $k in
      1) local=$word ;;
      2) remote=$word ;;
      3) st=$word ;;
      7) uid=$word ;;
      9)
        case $st in 0A) listening=$((listening + 1)) ;; 08) [ "$state" = 0A ] && continue ;; *) continue ;; esac
        count=$((count + 1))
        [ $count -gt $max_rows ] && break
        [ $st = 0A ] && inodes="$inodes $word"
        rows="${rows}0: $local $remote $st 0:0 0:0 0 $uid 0 $word$nl" ;;
    esac
  done
}

# Whose the sockets in $inodes are, of those that were not there at the last change: one `ls` over all descriptors that
# this user may see, and for each process found (max_owners of them) its command line. Of very many at once (max_news) the
# rest is not looked up: it costs the square of their number, and there is no poll meanwhile.
name_new() {
  wanted="" news=0 last_known="$known "
  for word in $inodes; do
    case $last_known in *" $word "*) continue ;; esac
    [ "$word" = 0 ] && continue
    news=$((news + 1))
    if [ $news -le $max_news ]; then wanted="$wanted $word"; else echo "owner $word 0" >&2; fi
  done
  known=$inodes
  [ -n "$wanted" ] && [ -n "$names" ] || return
  wanted="$wanted " found=" " pid=0 named="" owners=0
  [ $news -gt $max_news ] && news=$max_news
  for word in $(list_sockets); do
    case $word in
      /proc/[0-9]*/fd:) pid=${word#/proc/} pid=${pid%/fd:} ;;
      'socket:['*']')
        word=${word#*[} word=${word%]}
        case $wanted in *" $word "*) ;; *) continue ;; esac
        case $found in *" $word "*) continue ;; esac
        if [ "$pid" != "$named" ]; then
          [ $owners -lt $max_owners ] || break
          owners=$((owners + 1)) named=$pid
          # A shell's variable holds no NUL: 1 is between the arguments.
          command=$(dd if="/proc/$pid/cmdline" bs=768 count=1 2>/dev/null | tr '\000\n\r' '\001  ')
        fi
        # Cutting it out of $wanted would cost dash the square of that text's length.
        found="$found$word " news=$((news - 1))
        printf 'owner %s %s %s\n' "$word" "$pid" "$command" >&2
        [ $news = 0 ] && break ;;
    esac
  done
  [ $news = 0 ] && return
  for word in $wanted; do
    case $found in *" $word "*) ;; *) echo "owner $word 0" >&2 ;; esac
  done
}

# "/proc/PID/fd:" before the "socket:[INODE]" of each process. With grep, words of other files do not become loops here.
list_sockets() {
  set +f
  if [ $filter = grep ]; then ls -l /proc/[0-9]*/fd 2>/dev/null | grep -F -e 'socket:[' -e '/fd:'
  else ls -l /proc/[0-9]*/fd 2>/dev/null; fi
}

# Reading the tables costs the kernel a walk over its whole hash (4 ms each on a small machine), so look first at what
# is nearly free: $inuse, TCP sockets of this network namespace that listen or are connected, and $cursor, the last
# pid given out here. Both are empty where the kernel does not say.
glance() {
  inuse= tcp= tcp6=0 cursor=
  { { read -r skip; read -r skip skip tcp skip; } </proc/net/sockstat
    { read -r skip skip tcp6 skip; } </proc/net/sockstat6
    read -r skip skip skip skip cursor </proc/loadavg
  } 2>/dev/null
  case $tcp in '' | *[!0-9]*) return ;; esac
  case $tcp6 in '' | *[!0-9]*) return ;; esac
  case $cursor in '' | *[!0-9]*) cursor= ;; esac
  inuse=$((tcp + tcp6))
}

# Whether the tables can be as they were: as many sockets as before, no process started but our own nap, and (where
# CLOSE_WAIT matters) listeners only. What this misses, a swap within one process, is seen SKIPS polls later.
quiet() {
  [ -n "$inuse" ] && [ -n "$cursor" ] && [ -n "$last_cursor" ] && [ $skipped -lt "$skips" ] || return 1
  [ "$inuse" = "$last_inuse" ] && [ "$cursor" = $((last_cursor + 1)) ] || return 1
  [ "$state" = 0A ] || [ "$inuse" = "$listening" ]
}

poll_loop() {
  set -f
  stop="" napping=""
  # Not in mid-command: the trap only notes it and wakes the nap, the loop leaves at its own places.
  trap 'stop=1; [ -n "$napping" ] && kill "$napping" 2>/dev/null' TERM
  trap '' PIPE HUP INT
  trap 'kill -TERM $$ 2>/dev/null' EXIT
  number=0 last_raw=none last_rows=none last_inuse="" last_cursor="" skipped=0 listening=0 known=""
  while [ -z "$stop" ]; do
    glance
    if quiet; then
      skipped=$((skipped + 1)) raw=$last_raw
    else
      # The count from before the tables: a socket that comes in between then shows as a change.
      skipped=0 last_inuse=$inuse
      read_tables
      glance
    fi
    last_cursor=$cursor
    if [ "$raw" != "$last_raw" ]; then
      last_raw=$raw
      reduce
      if [ "$rows" != "$last_rows" ]; then
        last_rows=$rows number=$((number + 1))
        printf 'AF begin %s\n%sAF end %s\n' $number "$rows" $number 2>/dev/null || break
        name_new
      fi
    fi
    sleep "$interval" &
    napping=$!
    [ -n "$stop" ] && kill "$napping" 2>/dev/null
    wait "$napping"
    slept=$?
    if [ -n "$stop" ]; then
      # A signal may cut a wait short, and the nap may have been too young to be hit.
      while kill "$napping" 2>/dev/null; do wait "$napping" 2>/dev/null; done
      break
    fi
    napping=
    # A sleep that fails would make this a busy loop; and our parent may have been killed.
    [ $slept = 0 ] && kill -0 $$ 2>/dev/null || break
  done
  exit 0
}

# Whether /proc/$1/$2 (environ or cmdline) contains $3. Reads drop the NULs; both files of a zombie are empty.
holds() {
  case $1 in '' | *[!0-9]*) return 1 ;; esac
  [ -r "/proc/$1/$2" ] || return 1
  if [ -n "$nul_grep" ]; then
    $nul_grep -q -F -e "$3" "/proc/$1/$2" 2>/dev/null
    return
  fi
  { while IFS= read -r line || [ -n "$line" ]; do
      case $line in *"$3"*) return 0 ;; esac
      line=
    done <"/proc/$1/$2"; } 2>/dev/null
  return 1
}

# Processes of this session -> $pids.
ours() {
  pids=
  if [ -n "$nul_grep" ]; then
    for path in $($nul_grep -l -F -e "AUTOFORWARD_SESSION=$session" /proc/[0-9]*/environ 2>/dev/null); do
      path=${path#/proc/}
      pids="$pids ${path%/environ}"
    done
  else
    for path in /proc/[0-9]*; do
      holds "${path#/proc/}" environ "AUTOFORWARD_SESSION=$session" && pids="$pids ${path#/proc/}"
    done
  fi
}

# A relay whose start was under way when the host went away shows up only after the first look.
sweep() {
  sweep_once
  if [ -n "$fraction" ]; then sleep 0.4; else sleep 1; fi
  sweep_once
}

sweep_once() {
  ours
  [ -z "$pids" ] && return
  kill -TERM $pids 2>/dev/null
  for round in 1 2 3 4; do
    if [ -n "$fraction" ]; then sleep 0.1; else sleep 1; fi
    ours
    [ -z "$pids" ] && return
    [ -z "$fraction" ] && break
  done
  # Children before the shells that wait for them, so that nothing is left as a zombie.
  for pid in $pids; do
    holds "$pid" cmdline autoforward-relay || kill -KILL "$pid" 2>/dev/null
  done
  [ -n "$fraction" ] && sleep 0.1
  ours
  [ -z "$pids" ] || kill -KILL $pids 2>/dev/null
}

finish() {
  trap '' TERM HUP INT PIPE
  # Not once: a shell that was forked a moment ago loses what comes before its own traps are set.
  for round in 1 2 3 4 5 6 7 8 9 10; do
    kill -TERM "$loop" 2>/dev/null
    if [ -n "$fraction" ]; then sleep 0.05; else sleep 1; fi
    loop_alive || break
  done
  loop_alive && kill -KILL "$loop" 2>/dev/null
  wait "$loop" 2>/dev/null
  sweep
  exit 0
}

loop_alive() {
  status=
  { IFS= read -r status <"/proc/$loop/stat"; } 2>/dev/null
  case $status in '' | *') Z '* | *') X '*) return 1 ;; esac
}

trap '' PIPE
# Which network namespace this is, of which start of which machine.
net=
if has ls; then
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
  net=$(ls -l /proc/self/ns/net 2>/dev/null)
  case $net in *' -> net:'*) net=" net=$boot ${net##* -> }" ;; *) net= ;; esac
fi
echo "AF hello 1 pid=$$ filter=$filter interval=$interval$net" || exit 0
trap finish TERM HUP INT
poll_loop </dev/null &
loop=$!

while IFS=' ' read -r word number token rest; do
  case $word in
    ping) loop_alive && echo "pong $number" >&2 ;;
    kill | kill9)
      signal=TERM
      [ "$word" = kill9 ] && signal=KILL
      if [ -n "$token" ] && holds "$number" environ "AUTOFORWARD_RELAY=$token"; then
        kill -$signal "$number" 2>/dev/null
        echo "killed $number" >&2
      else
        echo "gone $number" >&2
      fi ;;
    socks)
      inodes=
      if [ -n "$token" ] && holds "$number" environ "AUTOFORWARD_RELAY=$token"; then
        for part in $(ls -l "/proc/$number/fd" 2>/dev/null); do
          case $part in 'socket:['*']') part=${part#*[}; inodes="$inodes ${part%]}" ;; esac
        done
      fi
      echo "socks $number$inodes" >&2 ;;
  esac
done
finish
