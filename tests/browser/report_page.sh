#!/usr/bin/env bash
# The load tester's page in a real browser: its script runs, every chart is drawn inside its frame, nothing is asked of the
# network, and it looks different in light and dark. Needs a release build, and Debian's package chromium (apt-get install
# chromium; 100 MB, so not part of CI): without it, says so and checks nothing.
#
#   tests/browser/report_page.sh [FOLDER]        default build/browser; report.html, light.png and dark.png stay there
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/browser} bin=build/release/bin
command -v chromium >/dev/null || { echo "SKIPPED: chromium is not installed (apt-get install chromium)"; exit 0; }
rm -rf "$folder" && mkdir -p "$folder"
fail() { echo "FAILED: $*" >&2; exit 1; }

"$bin/expertd" serve --checkpoint tests/data/golden/olmoe --listen 127.0.0.1:0 --metrics-address 127.0.0.1:0 \
  >"$folder/server.out" 2>"$folder/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do grep -q '^ready' "$folder/server.out" && break; sleep 0.1; done
# A decode step through the same layer twice, so that the page has every chart there is. p50=10s: any machine holds it.
"$bin/expertd-client" bench --endpoint "$(sed -n 's/^listening on //p' "$folder/server.out")" --layers 0,0 --rows zipf:1..16 \
  --metrics "$(sed -n 's/^metrics on //p' "$folder/server.out")" --sweep rate --sweep-from 50 --sweep-to 200 --slo p50=10s \
  --warmup-s 0.1 --duration-s 0.5 --windows 3 --html "$folder/report.html" >"$folder/table.txt" 2>&1 ||
  grep -q 'no load that was tried holds' "$folder/table.txt" || { cat "$folder/table.txt"; fail "the load test"; }

# browser FLAGS...: headless, with a profile of its own and no name that resolves.
browser() {
  local root=()
  ((EUID == 0)) && root=(--no-sandbox)
  timeout 60 chromium --headless "${root[@]}" --disable-gpu --user-data-dir="$folder/profile" --hide-scrollbars \
    --host-resolver-rules='MAP * ~NOTFOUND' --enable-logging=stderr "$@" "file://$(realpath "$folder/report.html")"
}
browser --dump-dom >"$folder/dom.html" 2>"$folder/browser.log" || fail "chromium: $(tail -3 "$folder/browser.log")"
grep -q 'data-ready="yes"' "$folder/dom.html" || fail "the page's script did not run to its end"
! grep 'CONSOLE' "$folder/browser.log" || fail "the browser complains about the page"
! grep -Eiq '(src|href)=|@import|url\(' "$folder/dom.html" || fail "the page refers to something outside"
python3 - "$folder/dom.html" <<'PY' || fail "the charts"
import re
import sys

page = open(sys.argv[1], encoding="utf-8").read()
charts = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)".*?</svg>', page, re.S)
bodies = re.findall(r"<svg .*?</svg>", page, re.S)
assert len(bodies) == 8, f"{len(bodies)} charts, not 8"
marks = 0
for (width, height), body in zip(charts, bodies):
    assert not re.search(r"nan|inf\b", body.replace("info", ""), re.I), body[:200]
    for x, y in re.findall(r'<circle[^>]* cx="(\S+)" cy="(\S+)"', body):
        marks += 1
        assert 0 <= float(x) <= float(width) and 0 <= float(y) <= float(height), (x, y, width, height)
assert marks > 20, f"{marks} marks"
print(f"{len(bodies)} charts, {marks} marks, all inside their frames")
PY
for scheme in 0:dark 1:light; do
  browser --blink-settings=preferredColorScheme="${scheme%:*}" --window-size=1180,2000 --screenshot="$folder/${scheme#*:}.png" 2>/dev/null
  [[ $(stat -c %s "$folder/${scheme#*:}.png") -gt 50000 ]] || fail "${scheme#*:}.png is nearly empty"
done
! cmp -s "$folder/dark.png" "$folder/light.png" || fail "dark and light look the same"
echo "passed: $folder/report.html, $folder/light.png, $folder/dark.png"
