#!/usr/bin/env python3
"""Tests the page of traces in a real browser.

    deploy/traces_page.py URL [SCREENSHOT.png]

URL is where `tourin up` shows traces; it must have at least one.
Needs playwright (pip) and Debian's chromium; downloads no browser of its own. Exit code 1, with what was
missing, when the test fails.
"""

import json
import shutil
import sys
import urllib.request

from playwright.sync_api import expect, sync_playwright


def check(url, screenshot):
    with urllib.request.urlopen(url.rstrip("/") + "/api/v2/traces?limit=50", timeout=10) as answer:
        traces = json.load(answer)
    assert traces, "no traces to show"
    complaints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: request.url.startswith(url) or complaints.append(f"asked {request.url}"))

            page.goto(url)
            rows = page.locator("#traces tr")
            expect(rows.first).to_be_visible()
            names = page.locator("#filter [name=serviceName] option").all_text_contents()
            services = {span["localEndpoint"]["serviceName"] for spans in traces for span in spans}
            assert services <= set(names), f"{services} not offered: {names}"

            # By keyboard alone: from the first trace's link to its waterfall.
            link = rows.first.get_by_role("link")
            link.focus()
            page.keyboard.press("Enter")
            spans = page.locator("#waterfall > li")
            expect(spans.first).to_be_visible()
            expect(page.locator("#trace-title")).to_be_focused()
            shown = page.url.split("#")[1]
            with urllib.request.urlopen(f"{url.rstrip('/')}/api/v2/trace/{shown}", timeout=10) as answer:
                trace = json.load(answer)
            expect(spans).to_have_count(len(trace))
            failed = [span for span in trace if "error" in span.get("tags", {})]
            expect(page.locator("#waterfall > li.failed")).to_have_count(len(failed))
            summary = page.locator("#waterfall summary").first
            summary.focus()
            page.keyboard.press("Enter")
            expect(page.locator("#waterfall .detail").first).to_contain_text("span id")
            if screenshot and scheme == "light":
                page.screenshot(path=screenshot, full_page=True)

            page.go_back()
            expect(rows.first).to_be_visible()
            page.locator("#filter [name=serviceName]").select_option(sorted(services)[0])
            page.get_by_role("button", name="Find").click()
            expect(page.locator("#status")).to_contain_text("trace")

            page.goto(url.rstrip("/") + "/#" + "ab" * 16)
            expect(page.locator("#status")).to_contain_text("No such trace")
            # The one answer that is meant to be 404 is reported by the browser too.
            complaints[:] = [text for text in complaints if "404" not in text]
            page.close()
        browser.close()
    assert not complaints, complaints
    print(f"{len(traces)} traces shown, light and dark")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        check(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None)
    except AssertionError as missed:
        sys.exit(f"the page of traces is not as it should be: {missed}")
