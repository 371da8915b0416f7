#!/usr/bin/env bash
# Runs the binary the way the image does, where no image can be built or pulled: in an empty root directory with only
# what the Dockerfile's base image holds (the C library and its resolver, a few lines in /etc, no shell, no
# certificates), as the image's user. And holds the Dockerfile to what was run. Argument: the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

source tests/lib.sh "$@"
root="$work/root"

# What the Dockerfile says, as USER=, ENTRYPOINT=, RUN= and HEALTH=; a statement that is missing ends it.
python3 - Dockerfile > "$work/dockerfile" << 'PY'
import json, re, shlex, sys
text = re.sub(r"\\\n", " ", "\n".join(l for l in open(sys.argv[1]).read().splitlines() if not l.lstrip().startswith("#")))
stages = re.split(r"^FROM ", text, flags=re.M)
def one(pattern, where=stages[-1]):
    found = re.findall(pattern, where, flags=re.M)
    if len(found) != 1:
        sys.exit(f"the Dockerfile's last stage has {len(found)} of {pattern}, not one")
    return found[0]
if "RUN " in stages[-1]:
    sys.exit("the Dockerfile's last stage has a RUN, and its base no shell to run it with")
for image in re.findall(r"^ARG \w+_IMAGE=(\S+)", text, flags=re.M):
    if not re.search(r":[\w.-]+$", image) or image.endswith(":latest"):
        sys.exit(f"{image} has no tag")
entrypoint = json.loads(one(r"^ENTRYPOINT (.*)$"))
copied = one(r"^COPY --from=build /build/target/release/wechat-sidecar (\S+)$")
if entrypoint != [copied]:
    sys.exit(f"ENTRYPOINT is {entrypoint}, and the binary is copied to {copied}")
health = json.loads(one(r"^HEALTHCHECK .*?\bCMD (.*)$"))
words = lambda array: "(" + " ".join(map(shlex.quote, array)) + ")"
print(f"user={shlex.quote(one(r'^USER (.*)$'))}")
print(f"entrypoint={words(entrypoint)}\ncommand={words(json.loads(one(r'^CMD (.*)$')))}\nhealth={words(health)}")
print(f"ports={shlex.quote(one(r'^EXPOSE (.*)$'))}")
PY
# shellcheck disable=SC1091 # Just written.
source "$work/dockerfile"
# shellcheck disable=SC2154 # From that file.
[ "$user" = 65532:65532 ] || fail "the image's user is $user"
# shellcheck disable=SC2154
[ "$ports" = "7200 7201" ] || fail "the image exposes $ports"
echo "the Dockerfile has what is needed"

# Only what .dockerignore lets in reaches the build, and it must be enough.
mkdir "$work/context"
sed -n 's/^!//p' .dockerignore | while read -r path; do cp -R "$path" "$work/context/"; done
(
  cd "$work/context"
  CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OLDPWD/target}" cargo check --quiet --locked
) || fail "what .dockerignore lets in does not build"
echo "what .dockerignore lets in is enough to build from"

# The empty root.
mkdir -p "$root/etc" "$root/tmp"
chmod 1777 "$root/tmp"
# shellcheck disable=SC2154
install -D --mode=755 "$binary" "$root${entrypoint[0]}"
ldd "$binary" | grep --only-matching '/[^ ]*' > "$work/libraries"
while read -r library; do
  case "$(basename "$library")" in
    libc.so.* | libm.so.* | libgcc_s.so.* | ld-linux*) install -D --mode=755 "$library" "$root$library" ;;
    *) fail "the binary needs $library, which the base image lacks" ;;
  esac
  case "$library" in
    */libc.so.*)
      for plugin in libnss_dns.so.2 libnss_files.so.2 libresolv.so.2; do
        resolver="$(dirname "$library")/$plugin"
        [ ! -e "$resolver" ] || install -D --mode=755 "$resolver" "$root$resolver"
      done
      ;;
  esac
done < "$work/libraries"
printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
cp /etc/resolv.conf "$root/etc/resolv.conf" 2> /dev/null || : > "$root/etc/resolv.conf"
chmod 755 "$work" "$root"

if [ "$(id -u)" = 0 ]; then
  enter=(chroot --userspec="$user" --groups="${user#*:}" "$root")
elif unshare --user --map-root-user chroot "$root" "${entrypoint[0]}" --version > /dev/null 2>&1; then
  echo "not root: running in a user namespace, so the image's user itself is not tested"
  enter=(unshare --user --map-root-user chroot "$root")
elif [ "${CI:-}" = true ]; then
  fail "the image was not tested: be root, or allow unprivileged user namespaces"
else
  echo "SKIPPED: the image was not tested, because chroot needs root or unprivileged user namespaces"
  exit 0
fi

# inside NAME=VALUE... -- ARGUMENTS...: the entrypoint in the empty root, with an environment of its own.
inside() {
  local environment=()
  while [ "$1" != -- ]; do environment+=("$1"); shift; done
  shift
  env --ignore-environment PATH="$PATH" "${environment[@]}" "${enter[@]}" "${entrypoint[0]}" "$@"
}

list() { find "$root" -path "$root/tmp" -prune -o -printf '%P %y %m %s %T@ %U\n' | sort; }
list > "$work/before"

env --ignore-environment PATH="$PATH" "${enter[@]}" "${entrypoint[0]}" simulate --listen 127.0.0.1:0 \
  --tls-listen 127.0.0.1:0 --control-listen 127.0.0.1:0 --ca-out /tmp/ca.pem > "$work/sim" 2> "$work/sim.log" &
sim=$!
pids+=("$sim")
until_found "Point a sidecar" "$work/sim"
tls="$(sed -n 's|^  API, TLS *https://\([^ ]*\).*|\1|p' "$work/sim")"
control="$(sed -n 's|^  control *http://\([^ ]*\).*|\1|p' "$work/sim")"
# By name, so that the resolver works, too.
settings=(
  WECHAT_SIDECAR_APPID="$appid" WECHAT_SIDECAR_SECRET="$secret" WECHAT_SIDECAR_UPSTREAM="https://localhost:${tls##*:}"
  WECHAT_SIDECAR_LISTEN=127.0.0.1:0 WECHAT_SIDECAR_LOG_FORMAT=json
)

# The built-in roots are there without any file: they are asked, and do not know the simulation's authority.
code=0
inside "${settings[@]}" WECHAT_SIDECAR_ADMIN_LISTEN=127.0.0.1:0 -- check > "$work/check" 2>&1 || code=$?
if [ "$code" != 1 ] || ! grep --quiet --ignore-case "certificate" "$work/check"; then
  cat "$work/check"
  fail "a certificate of an authority nobody knows was not refused as one (exit code $code)"
fi
echo "an authority nobody knows is refused"

# shellcheck disable=SC2154
env --ignore-environment PATH="$PATH" "${settings[@]}" WECHAT_SIDECAR_ADMIN_LISTEN=127.0.0.1:0 \
  WECHAT_SIDECAR_UPSTREAM_CA_FILE=/tmp/ca.pem "${enter[@]}" "${entrypoint[@]}" "${command[@]}" \
  > "$work/run" 2> "$work/run.log" &
run=$!
pids+=("$run")
until_found '"listen":"' "$work/run.log"
listen="$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$work/run.log")"
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/run.log")"
inside WECHAT_SIDECAR_ADMIN_LISTEN="$admin" -- wait --timeout 30s || fail "it does not become ready"
# shellcheck disable=SC2154
env --ignore-environment PATH="$PATH" WECHAT_SIDECAR_ADMIN_LISTEN="$admin" "${enter[@]}" "${health[@]}" > /dev/null ||
  fail "the HEALTHCHECK's command says it is not healthy"
echo "it is ready, and the HEALTHCHECK's command says so"
if [ "$(id -u)" = 0 ] && [ -r "/proc/$run/status" ]; then
  grep --quiet "^Uid:[[:space:]]*65532[[:space:]]*65532" "/proc/$run/status" || fail "it does not run as 65532"
fi

call() {
  curl --silent --show-error --include --noproxy '*' --max-time 30 \
    --data '{"touser":"oAAAA","msgtype":"text","text":{"content":"hello"}}' \
    "http://$listen/cgi-bin/message/custom/send" > "$work/reply" || fail "no answer"
  grep --quiet '"errcode":0' "$work/reply" || { cat "$work/reply"; fail "the call was not sent"; }
}
call
curl --silent --show-error --fail --noproxy '*' --max-time 30 --data '{}' "http://$control/expire" > /dev/null
call
grep --quiet --ignore-case "x-wechat-sidecar-attempts: 2" "$work/reply" || fail "the dead token was not noticed"
echo "calls go through it, a dead token is not noticed"

code=0
kill -TERM "$run"
wait "$run" || code=$?
pids=("$sim")
[ "$code" = 0 ] || { cat "$work/run.log"; fail "SIGTERM ends it with $code"; }
code=0
env --ignore-environment PATH="$PATH" WECHAT_SIDECAR_ADMIN_LISTEN="$admin" "${enter[@]}" "${health[@]}" > /dev/null 2>&1 || code=$?
[ "$code" = 1 ] || fail "the HEALTHCHECK's command says $code of a sidecar that is gone, not 1"
kill -TERM "$sim"
code=0
wait "$sim" || code=$?
pids=()
[ "$code" = 0 ] || fail "SIGTERM ends the simulation with $code"
list > "$work/after"
diff "$work/before" "$work/after" || fail "something was written into the root"
[ "$(ls -A "$root/tmp")" = ca.pem ] || fail "something was written to /tmp"
echo "SIGTERM ends it with 0, and nothing was written"
