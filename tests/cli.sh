#!/usr/bin/env bash
# The commands as a user meets them: help, exit codes, what is printed and what never is. Argument: the binary.
set -euo pipefail

source "$(dirname "$0")/lib.sh" "$@"

# expect CODE TITLE COMMAND...: the exit code; what was printed is in $work/out and $work/err.
expect() {
  local code="$1" title="$2" got=0
  shift 2
  timeout 60 "$@" > "$work/out" 2> "$work/err" || got=$?
  if [ "$got" != "$code" ]; then
    cat "$work/out" "$work/err"
    fail "$title: exit code $got, not $code"
  fi
  echo "$title"
}

# says TEXT...: each is in what was printed last.
says() {
  local text
  for text in "$@"; do
    grep --quiet --fixed-strings -- "$text" "$work/out" "$work/err" || {
      cat "$work/out" "$work/err"
      fail "it does not say: $text"
    }
  done
}

for command in "" run check wait ca simulate demo man completions; do
  # shellcheck disable=SC2086 # No command is no word.
  expect 0 "help of '$command' is printed, with examples" "$binary" $command --help
  says Examples:
  [ ! -s "$work/err" ] || fail "help is for standard output"
done
expect 0 "the version is printed" "$binary" --version
says "wechat-sidecar "

# The manual and the completions come from the same definitions as the help, and are taken by what they are for.
for command in "" run check wait ca simulate demo man completions; do
  # shellcheck disable=SC2086 # No command is no word.
  expect 0 "the manual has a page of '$command'" "$binary" man $command
  says ".TH wechat-sidecar${command:+-$command} 1" ".SH NAME" ".SH SYNOPSIS" ".SH DESCRIPTION"
  cp "$work/out" "$work/wechat-sidecar.1"
  if command -v man > /dev/null; then
    expect 0 "and man shows it without a warning" env MANWIDTH=100 LC_ALL=C.UTF-8 man --warnings -l "$work/wechat-sidecar.1"
    [ ! -s "$work/err" ] || { cat "$work/err"; fail "man warns of it"; }
  else
    echo "SKIPPED: man is not here, so the page was not shown"
  fi
done
expect 0 "the manual has a page of 'run'" "$binary" man run
says '\fB\-\-secret\-file\fR' WECHAT_SIDECAR_SECRET
expect 64 "there is no page of what there is not" "$binary" man banana
for shell in bash zsh fish elvish powershell; do
  expect 0 "completions for $shell are printed" "$binary" completions "$shell"
  says secret-file completions simulate
  ! grep --quiet --extended-regexp -- "--secret( |'|\"|\[|\$)" "$work/out" || fail "they offer the secret as a flag"
  cp "$work/out" "$work/completions.$shell"
  case "$shell" in bash | zsh | fish) ;; *) continue ;; esac
  if command -v "$shell" > /dev/null; then
    expect 0 "and $shell can read them" "$shell" -n "$work/completions.$shell"
  else
    echo "SKIPPED: $shell is not here, so it did not read them"
  fi
done
expect 0 "bash completes a flag" bash -c "set -e; source '$work/completions.bash'
  completer=\$(complete -p wechat-sidecar | sed 's/.* -F \([^ ]*\).*/\1/')
  COMP_WORDS=(wechat-sidecar run --secret-f) COMP_CWORD=2
  \$completer wechat-sidecar --secret-f run
  printf '%s\n' \"\${COMPREPLY[@]}\""
says --secret-file
expect 64 "a shell nobody knows is refused, with those that are known" "$binary" completions tcsh
says bash zsh fish

expect 64 "all bad settings are told at once" \
  env WECHAT_SIDECAR_APPID=wx/.. WECHAT_SIDECAR_TOKEN_WAIT=soon WECHAT_SIDECAR_BANANA=1 \
  "$binary" run --listen nowhere --log inof --workers 0
says WECHAT_SIDECAR_APPID WECHAT_SIDECAR_TOKEN_WAIT WECHAT_SIDECAR_BANANA --listen --log --workers secret
expect 64 "an unknown flag is refused" "$binary" run --listne 127.0.0.1:0
says --listen
expect 64 "a secret on the command line is refused" "$binary" run --appid "$appid" --secret "$secret"
says WECHAT_SIDECAR_SECRET
! grep --quiet "$secret" "$work/out" "$work/err" || fail "and is shown"
expect 1 "wait gives up when nothing listens" "$binary" wait --admin-listen 127.0.0.1:1 --timeout 0s

"$binary" simulate --listen 127.0.0.1:0 --control-listen 127.0.0.1:0 > "$work/sim" 2> "$work/sim.log" &
sim=$!
pids+=("$sim")
until_found "Point a sidecar" "$work/sim"
says_address() { sed -n "s|^  $1 *http://\([^ ]*\).*|\1|p" "$work/sim"; }
api="$(says_address API)"
control="$(says_address control)"
account=("--appid" "$appid" "--upstream" "http://$api")

export WECHAT_SIDECAR_SECRET="$secret"
expect 0 "check finds good settings good" "$binary" check "${account[@]}"
says "$appid"
expect 1 "check finds a wrong secret" \
  env WECHAT_SIDECAR_SECRET=ffffffffffffffffffffffffffffffff "$binary" check "${account[@]}"
says AppSecret
! grep --quiet ffffffffffffffff "$work/out" "$work/err" || fail "and shows it"
expect 69 "run finds its port taken" "$binary" run "${account[@]}" --listen "$api" --admin-listen 127.0.0.1:0
says "listen = $api"
expect 69 "run finds its admin port taken" "$binary" run "${account[@]}" --listen 127.0.0.1:0 --admin-listen "$api"
says "admin_listen = $api"
expect 69 "simulate finds its port taken" "$binary" simulate --listen "$api" --control-listen 127.0.0.1:0

"$binary" run "${account[@]}" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --log trace --log-format json \
  > "$work/run" 2> "$work/run.log" &
run=$!
pids+=("$run")
until_found '"listen":"' "$work/run.log"
listen="$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$work/run.log")"
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/run.log")"
expect 0 "wait ends when the sidecar is ready" "$binary" wait --admin-listen "$admin" --timeout 30s
expect 0 "and when it is live" "$binary" wait --for live --admin-listen "$admin" --timeout 30s

# call TITLE CURL-OPTIONS...: a message, sent without a token.
call() {
  expect 0 "$1" curl --silent --show-error --include --noproxy '*' --max-time 30 \
    --data '{"touser":"oAAAA","msgtype":"text","text":{"content":"hello"}}' "${@:2}" \
    "http://$listen/cgi-bin/message/custom/send?kf=SEEN-BY-NOBODY"
  says "200 OK" '"errcode":0'
}
call "a call is sent"
expect 0 "its token dies" curl --silent --show-error --noproxy '*' --max-time 30 --data '{}' "http://$control/expire"
call "the next call is sent all the same"
says "x-wechat-sidecar-attempts: 2"

kill -TERM "$run"
code=0
wait "$run" || code=$?
pids=("$sim")
[ "$code" = 0 ] || fail "SIGTERM ends run with $code"
kill -TERM "$sim"
wait "$sim" || code=$?
pids=()
[ "$code" = 0 ] || fail "SIGTERM ends simulate with $code"
echo "SIGTERM ends both with 0"

# The access lines are there, and nothing of a token, a secret or a query's value, though the log was at trace.
says_log() { grep --quiet --fixed-strings -- "$1" "$work/run.log" || { cat "$work/run.log"; fail "the log has no $1"; }; }
says_log '"keys":"kf"'
says_log '"refused":42001'
[ ! -s "$work/run" ] || fail "run prints to standard output"
! grep --extended-regexp "$secret|SEEN-BY-NOBODY|access_token=" "$work/run.log" || fail "the log shows too much"
echo "the log has a line for each call and no secret, token or value"
