#!/usr/bin/env python3
"""Takes a picture of a trace in Zipkin's own page.

    deploy/zipkin_page.py ZIPKIN_URL TRACE_ID SCREENSHOT.png

Needs playwright (pip) and Debian's chromium, as deploy/testbed.sh installs them. Exit code 1 when the page does
not show the trace's services.
"""

import json
import shutil
import sys
import urllib.request

from playwright.sync_api import expect, sync_playwright


def picture(url, trace, screenshot):
    with urllib.request.urlopen(f"{url}/api/v2/trace/{trace}", timeout=10) as answer:
        spans = json.load(answer)
    services = {span["localEndpoint"]["serviceName"] for span in spans}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 760})
        page.goto(f"{url}/zipkin/traces/{trace}")
        for service in sorted(services):
            expect(page.get_by_text(service, exact=False).first).to_be_visible(timeout=30_000)
        page.wait_for_timeout(1_000)  # The page draws its bars after its text.
        page.screenshot(path=screenshot)
        browser.close()
    print(f"{len(spans)} spans of {', '.join(sorted(services))}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    picture(sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3])
