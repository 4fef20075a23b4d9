#!/usr/bin/env bash
# Debian packages that the tests use and pip cannot install: a browser and its driver, for the report and the chat page.
# Does nothing where they are installed. Where they cannot be installed it says why and exits 1; the browser tests are
# then skipped.
set -euo pipefail

programs=(chromium chromedriver)
packages=(chromium chromium-driver)

missing=0
for program in "${programs[@]}"; do
  command -v "$program" >/dev/null || missing=1
done
[ "$missing" = 1 ] || exit 0

fail() {
  echo "install-debian: $1" >&2
  echo "install-debian: the browser tests will be skipped; to run them: apt-get install ${packages[*]}" >&2
  exit 1
}

command -v apt-get >/dev/null || fail "this is no Debian machine (no apt-get)"
as_root=()
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || fail "not root, and sudo asks for a password"
  as_root=(sudo -n)
fi

echo "install-debian: installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=("${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 </dev/null || {
  tail -n 5 "$log" >&2
  fail "apt-get failed"
}
