# What the checks of the built binary have in common; to be sourced with the script's own arguments. Gives $binary (the
# first argument), $appid and $secret (the simulation's), and $work, a directory that goes away together with the
# processes named in pids.
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
