# What the checks of the built binary have in common; to be sourced with the script's own arguments. Gives $binary (the
# first argument), $appid and $secret (the simulation's), and $work, a directory that goes away together with the
# processes named in pids; and check, which counts what passed and failed.
# shellcheck shell=bash disable=SC2034

binary="$(realpath "${1:?give the binary to test}")"
appid=wx0123456789abcdef
secret=0123456789abcdef0123456789abcdef
work="$(mktemp -d)"
# What is still to be ended; a process that was waited for is none of ours any more.
pids=()
clean() {
  for pid in "${pids[@]}"; do
    kill -KILL "$pid" 2> /dev/null && wait "$pid" 2> /dev/null || true
  done
  rm -rf "$work"
}
trap clean EXIT
# No setting of whoever runs this may count.
for name in $(compgen -e WECHAT_SIDECAR_ || true); do unset "$name"; done

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

passed=0 failed=0
# check TITLE COMMAND...: whether it does what the title says.
check() {
  local title="$1"
  shift
  if "$@" > "$work/out" 2>&1; then
    passed=$((passed + 1))
    echo "ok      $title"
  else
    failed=$((failed + 1))
    echo "FAILED  $title"
    tail -n 20 "$work/out"
  fi
}
# says WORDS COMMAND...: whether they are in what it prints.
says() {
  timeout 60 "${@:2}" > "$work/said" 2>&1 || true
  cat "$work/said"
  grep --quiet --fixed-strings -- "$1" "$work/said"
}
works() { timeout 60 "$@"; }
fails() { ! timeout 60 "$@"; }

# until_found TEXT FILE: waits for a line of a process that runs.
until_found() {
  for _ in $(seq 600); do
    grep --quiet "$1" "$2" 2> /dev/null && return
    sleep 0.1
  done
  cat "$2" >&2
  fail "${2##*/} does not say: $1"
}
