"""What people do in the dashboard, in Chromium, against a running service with the fake trainer."""

import json
import re
import tarfile
from pathlib import Path

import httpx
import psycopg
import pytest
from playwright.sync_api import BrowserContext, Page, expect
from psycopg.types.json import Jsonb

from api.dependencies import SESSION_COOKIE
from cli.serve import Service
from tests.browser.conftest import LAN_HOST, sign_in
from tests.factories import submit_script, upload_script, wait_for_status, write_rows
from tests.plain_client import Client

ATTACK = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


# --- Signing in -------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_with_a_clear_message(visitor: Page, service: Service) -> None:
    sign_in(visitor, service.url, "mt_wrong")

    expect(visitor.get_by_role("alert")).to_have_text("This is no valid API key.")
    expect(visitor.get_by_label("API key")).to_have_value("")
    assert visitor.context.cookies() == []


def test_a_right_key_signs_in_until_signing_out(visitor: Page, service: Service) -> None:
    visitor.goto(f"{service.url}/")
    expect(visitor).to_have_url(re.compile("/dashboard/sign-in"))
    visitor.get_by_label("API key").fill(f" {service.key} ")
    visitor.get_by_role("button", name="Sign in").click()
    expect(visitor.get_by_role("heading", name="Jobs")).to_be_visible()
    (cookie,) = visitor.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"

    visitor.get_by_role("button", name="Sign out").click()

    expect(visitor.get_by_label("API key")).to_be_visible()
    assert visitor.context.cookies() == []
    visitor.goto(f"{service.url}/dashboard/datasets")
    expect(visitor).to_have_url(f"{service.url}/dashboard/sign-in?next=%2Fdashboard%2Fdatasets")


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("/dashboard/jobs?status=failed", "/dashboard/jobs?status=failed"),
        ("//evil.test/", "/dashboard/jobs"),
        ("https://evil.test/", "/dashboard/jobs"),
        ("/dashboard/\\evil.test", "/dashboard/jobs"),
        ("/dashboard/\nSet-Cookie: a=b", "/dashboard/jobs"),
        ("/jobs", "/dashboard/jobs"),
    ],
)
def test_signing_in_never_leads_to_another_site(service: Service, target: str, place: str) -> None:
    form = {"key": service.key, "next": target}
    response = httpx.post(f"{service.url}/dashboard/sign-in", data=form, headers={"Origin": service.url})

    assert response.status_code == 303
    assert response.headers["location"] == place


@pytest.mark.parametrize("path", ["sign-in", "sign-out"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "https://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["nothing", "foreign origin", "null origin", "cross-site"],
)
def test_forms_of_other_sites_are_refused(service: Service, path: str, headers: dict[str, str]) -> None:
    response = httpx.post(f"{service.url}/dashboard/{path}", data={"key": service.key}, headers=headers)

    assert response.status_code == 403
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "{url}"}, 404),
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({}, 401),
        ({"Origin": "https://evil.test"}, 401),
        ({"Origin": "{url}", "Sec-Fetch-Site": "same-site"}, 401),
    ],
)
def test_the_cookie_changes_things_from_our_own_pages_only(
    service: Service, session_cookie: str, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.format(url=service.url) for name, value in headers.items()}
    headers["Cookie"] = f"{SESSION_COOKIE}={session_cookie}"

    assert httpx.post(f"{service.url}/jobs/job_missing/cancel", headers=headers).status_code == status


def test_the_cookie_is_secure_where_the_page_is(service: Service) -> None:
    headers = {"Origin": "https://medtune.test", "Host": "medtune.test"}
    response = httpx.post(f"{service.url}/dashboard/sign-in", data={"key": service.key}, headers=headers)

    assert response.status_code == 303
    assert "Secure" in response.headers["set-cookie"]


def test_a_forged_cookie_is_worth_nothing(context: BrowserContext, visitor: Page, service: Service) -> None:
    context.add_cookies([{"name": "medtune_session", "value": "key_01.aaaa.bbbb", "url": service.url}])

    visitor.goto(f"{service.url}/dashboard/jobs")

    expect(visitor).to_have_url(re.compile("/dashboard/sign-in"))


def test_who_comes_from_another_site_goes_on_without_signing_in_again(page: Page, service: Service) -> None:
    link = f'<a href="{service.url}/dashboard/datasets">datasets</a>'
    page.route("http://elsewhere.test/", lambda route: route.fulfill(body=link, content_type="text/html"))
    page.goto("http://elsewhere.test/")
    page.get_by_role("link").click()

    expect(page).to_have_url(f"{service.url}/dashboard/datasets")


def test_it_works_over_plain_http_in_a_local_network(
    visitor: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    url = f"http://{LAN_HOST}:{service.settings.port}"
    sign_in(visitor, url, service.key)
    expect(visitor).to_have_url(f"{url}/dashboard/jobs")
    visitor.goto(f"{url}/dashboard/jobs/{job_id}")

    cancel_in_page(visitor)

    expect_status(visitor, "cancelled")


# --- The job page -----------------------------------------------------------------------------------------------


def test_a_job_is_followed_live_to_its_adapter(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"name": "followed"}, steps=30, step_seconds=0.2, log="hello\n")
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    expect_status(page, "running")
    chart = page.get_by_role("img", name="Loss by step")
    first = chart.get_attribute("aria-label") or ""
    expect(page.locator("#log")).to_contain_text("hello")
    expect(page.locator("[data-field=eta]")).to_contain_text("left")
    expect(chart).not_to_have_attribute("aria-label", first)
    expect_status(page, "succeeded")

    expect(page.locator("[data-field=steps]")).to_have_text("Step 30 of 30")
    expect(page.locator("#log span").last).to_have_text("step 30/30")
    expect(chart).to_have_attribute("aria-label", "Loss by step: 30 points, the last is 0.1 at step 30")
    assert chart.evaluate("chart => chart.data[0].x.length") == 30
    expect(page.locator("#events li").first).to_contain_text("succeeded")
    expect(page.locator("#verification")).to_contain_text("passed")
    expect(page.get_by_role("button", name="Cancel the job")).to_be_disabled()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the adapter").click()
    with tarfile.open(download.value.path()) as archive:
        assert "adapter/adapter_config.json" in archive.getnames()


def test_the_page_asks_no_more_when_the_job_is_final(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, steps=1)
    wait_for_status(client, job_id, "succeeded")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.install()
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect(page.get_by_role("img", name="Loss by step: 1 points")).to_be_visible()

    page.clock.run_for(60_000)

    assert [url.removeprefix(service.url) for url in asked].count(f"/jobs/{job_id}") == 1


def test_a_job_is_cancelled_from_its_page(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.1)
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect_status(page, "running")
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("button", name="Keep it running").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert client.get(f"/jobs/{job_id}")["cancel_requested_at"] is None

    cancel_in_page(page)

    expect_status(page, "cancelled")
    expect(page.get_by_role("button", name="Cancel the job")).to_be_disabled()


def test_a_waiting_job_is_paused_and_resumed_from_its_page(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)

    page.get_by_role("button", name="Pause").click()
    expect_status(page, "paused")
    expect(page.locator("[data-field=now]")).to_have_text("waits to be resumed")
    page.goto(f"{service.url}/dashboard/jobs?status=paused")
    expect(page.locator(f"tr[data-id={job_id}] .badge")).to_have_text("paused")
    page.get_by_role("link", name=job_id).click()
    page.get_by_role("button", name="Resume").click()

    expect_status(page, "queued")
    expect(page.get_by_role("button", name="Pause")).to_be_enabled()
    client.post(f"/jobs/{job_id}/cancel")


def test_a_running_job_is_paused_and_goes_on_from_its_page(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, steps=60, step_seconds=0.1)
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect(page.locator("[data-field=now]")).to_have_text("training")
    page.get_by_role("button", name="Pause").click()
    expect_status(page, "paused")
    expect(page.locator("[data-field=now]")).to_have_text("waits to be resumed")
    expect(page.locator("[data-field=eta]")).not_to_contain_text("left")
    expect(page.get_by_role("region", name="Attempts")).to_be_hidden()

    page.get_by_role("button", name="Resume").click()

    expect_status(page, "succeeded")
    expect(page.locator("[data-field=steps]")).to_have_text("Step 60 of 60")
    expect(page.get_by_role("region", name="Attempts").locator("tbody tr")).to_have_count(2)


def test_a_cancelled_job_is_retried_from_its_page(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}, "name": "again"})
    client.post(f"/jobs/{job_id}/cancel")
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect(page.get_by_role("button", name="Cancel the job")).to_be_disabled()
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)

    page.get_by_role("button", name="Retry").click()

    expect_status(page, "queued")
    expect(page.get_by_role("link", name=job_id)).to_have_attribute("href", f"/dashboard/jobs/{job_id}")
    new_id = page.url.rsplit("/", 1)[1]
    assert client.get(f"/jobs/{new_id}")["parent"] == job_id
    client.post(f"/jobs/{new_id}/cancel")


def test_a_refused_wish_is_shown_and_may_be_tried_again(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    client.post(f"/jobs/{job_id}/cancel")
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    answer = {"error": {"message": "3 jobs of this key wait already", "code": "queue_limit_reached"}}
    page.route("**/retry", lambda route: route.fulfill(status=429, json=answer))
    page.get_by_role("button", name="Retry").click()

    expect(page.get_by_role("alert")).to_have_text("3 jobs of this key wait already")
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    page.unroute("**/retry")
    page.route("**/retry", lambda route: route.abort())
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("alert")).to_contain_text("look at the newest jobs before you try again")


def test_several_attempts_are_told_one_by_one(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    attempts = page.get_by_role("region", name="Attempts")
    expect(attempts).to_be_hidden()

    add_attempts(service, job_id)

    expect(attempts.locator("tbody tr")).to_have_count(2)
    newest, first = attempts.locator("tbody tr").all()
    expect(newest).to_contain_text("paused")
    expect(newest).to_contain_text("40–61")
    expect(first).to_contain_text("on gpu-host-1")
    expect(first).to_contain_text("infrastructure")
    expect(first).to_contain_text("its worker is gone worker_lost")
    expect(first).to_contain_text("0–57")
    client.post(f"/jobs/{job_id}/cancel")


def test_long_words_stay_inside_their_cards(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    add_attempts(service, job_id)
    client.post(f"/jobs/{job_id}/cancel")
    check = {"name": "unchanged_base", "ok": True, "fingerprint": "sha256:" + "0123456789abcdef" * 4}
    set_verification(service, job_id, {"ok": True, "checks": [check]})

    for width in (1200, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{service.url}/dashboard/jobs/{job_id}")
        expect(page.get_by_role("region", name="Attempts")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".card").evaluate_all(LIST_OVERFLOWING) == []


LIST_OVERFLOWING = """
    cards => cards.flatMap(card => [...card.querySelectorAll("td, dd, p, h2")]
        .filter(element => !element.closest(".scroll"))
        .filter(element => element.getBoundingClientRect().right > card.getBoundingClientRect().right
            || element.scrollWidth > element.clientWidth + 1)
        .map(element => element.textContent))
"""


def test_a_failed_job_says_why_and_what_to_do(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=4, error_code="loss_not_finite", log="the last words\n")
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    expect_status(page, "failed")

    outcome = page.get_by_role("region", name="Why")
    expect(outcome).to_contain_text("it went wrong")
    expect(outcome).to_contain_text("loss_not_finite")
    expect(outcome).to_contain_text("What to do: do it right")
    expect(outcome.locator(".log")).to_contain_text("the last words")


def test_a_waiting_job_says_for_what(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}, "priority": 50})
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    expect(page.locator("[data-field=now]")).to_have_text(
        "number 1 in the queue: no running worker has 8 GPUs; the largest has 0"
    )

    client.post(f"/jobs/{job_id}/cancel")
    expect_status(page, "cancelled")


def test_a_long_log_keeps_its_newest_lines_and_the_readers_place(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    lines = "".join(f"line {n}\n" for n in range(3000))
    job_id = submit_script(client, tmp_path, steps=100, step_seconds=0.2, log=lines)
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    log = page.locator("#log")
    expect(log).to_contain_text("step 5/100")
    expect(log.locator("span")).to_have_count(2000)
    is_at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 30"
    assert log.evaluate(is_at_end)

    log.evaluate("log => log.scrollTop = 100")
    expect(log).to_contain_text("step 15/100")

    assert not log.evaluate(is_at_end)
    client.post(f"/jobs/{job_id}/cancel")


def test_a_lost_network_is_shown_and_overcome(
    page: Page, context: BrowserContext, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.1)
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect_status(page, "running")

    context.set_offline(True)
    expect(page.get_by_text("No connection to the service")).to_be_visible()
    client.post(f"/jobs/{job_id}/cancel")
    context.set_offline(False)

    expect_status(page, "cancelled")
    expect(page.get_by_text("No connection to the service")).to_be_hidden()


def test_an_ended_session_leads_to_signing_in_and_back(
    page: Page, context: BrowserContext, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    context.clear_cookies()
    page.get_by_label("API key").fill(service.key)
    page.get_by_role("button", name="Sign in").click()

    expect(page).to_have_url(f"{service.url}/dashboard/jobs/{job_id}")
    client.post(f"/jobs/{job_id}/cancel")


def test_the_heldout_loss_comes_with_its_interval(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"training": {"learning_rate": 0.005}})
    wait_for_status(client, job_id, "succeeded")
    heldout = {"rows": 21, "tokens": 2447, "base_loss": 8.629, "adapter_loss": 6.8985, "mean_row_difference": -1.739}
    set_verification(
        service,
        job_id,
        {
            "ok": True,
            "checks": [{"name": "only_lora_tensors", "ok": True, "detail": "", "tensors": 56}],
            "heldout": {**heldout, "ci95": [-1.816, -1.662]},
        },
    )

    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    verification = page.get_by_role("region", name="Verification")
    expect(verification).to_contain_text("Only LoRA tensors tensors: 56")
    expect(verification).to_contain_text("8.629 base → 6.899 with the adapter")
    expect(verification).to_contain_text("95 % interval -1.816 to -1.662: better than the base")
    expect(page.locator(".settings .changed")).to_contain_text("learning_rate0.005")


# --- The job table ----------------------------------------------------------------------------------------------


def test_the_table_shows_new_jobs_and_changes_without_a_reload(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    page.evaluate("() => { window.isFirstLoad = true; }")

    job_id = submit_script(client, tmp_path, {"name": "appears"}, steps=10, step_seconds=0.1)

    row = page.locator(f"tr[data-id={job_id}]")
    expect(row.get_by_role("link", name="appears")).to_be_visible()
    expect(row.locator(".badge")).to_have_text("succeeded")
    expect(row.locator("[data-field=progress]")).to_have_text("10/10 · 100 %")
    expect(row.locator("[data-field=loss]")).to_have_text("0.3")
    assert page.evaluate("() => window.isFirstLoad")


def test_jobs_are_filtered_by_status_and_paged(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    dataset = {"id": upload_script(client, tmp_path)}
    request = {"model": "tiny", "dataset": dataset, "resources": {"gpus": 8}}
    job_ids = [str(client.post("/jobs", request)["id"]) for _ in range(27)]

    page.goto(f"{service.url}/dashboard/jobs")
    page.get_by_label("Status").select_option("queued")

    expect(page).to_have_url(f"{service.url}/dashboard/jobs?status=queued")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(25)
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.id)") == job_ids[:1:-1]
    page.get_by_role("link", name="Older").click()
    expect(rows).to_have_count(2)
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.id)") == job_ids[1::-1]
    for job_id in job_ids:
        client.post(f"/jobs/{job_id}/cancel")
    expect(page.get_by_text("No job is queued.")).to_be_visible()
    page.get_by_role("link", name="Newest").click()
    expect(page.get_by_text("No job is queued.")).to_be_visible()


# --- Forms ------------------------------------------------------------------------------------------------------


def test_a_job_is_started_from_an_uploaded_file(page: Page, service: Service, tmp_path: Path) -> None:
    rows = [{"instruction": json.dumps({"steps": 2}), "response": "yes"}]
    file = write_rows(tmp_path / "answers.jsonl", rows)
    page.get_by_role("link", name="New job").first.click()
    open_upload(page)
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text("answers.jsonl: ready, 1 rows.")).to_be_visible()
    expect(page.get_by_label("Dataset", exact=True)).to_have_value(re.compile("ds_"))
    page.locator("#name").fill("from the form")
    page.get_by_label("Max steps").fill("2")
    page.get_by_label("Learning rate").fill("1e-3")
    page.get_by_label("DeepSpeed ZeRO stage").select_option("2")

    page.get_by_role("button", name="Start the job").click()

    expect(page.get_by_role("heading", name="from the form")).to_be_visible()
    expect_status(page, "succeeded")
    changed = page.locator(".settings .changed")
    expect(changed).to_have_text([r"max_steps2", r"learning_rate0.001", r"deepspeed.stage2"])


def test_refused_fields_say_so_at_their_places(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    wrong = {
        "Max steps": ("1.5", "valid integer"),
        "Learning rate": ("fast", "valid number"),
        "LoRA rank r": ("0", "greater than or equal to 1"),
        "Validation fraction": ("0.9", "less than or equal to 0.5"),
    }
    page.goto(f"{service.url}/dashboard/jobs/new?dataset={upload_script(client, tmp_path)}")
    for label, (value, _) in wrong.items():
        page.get_by_label(label).fill(value)

    page.get_by_role("button", name="Start the job").click()

    for label, (_, message) in wrong.items():
        field = page.get_by_label(label)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".field", has=field).locator(".error")).to_contain_text(message)
    expect(page.locator(".error:visible")).to_have_count(len(wrong))
    page.get_by_label("Max steps").fill("2")
    page.get_by_label("Learning rate").fill("0.1")
    page.get_by_label("Validation fraction").fill("")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator(".error:visible")).to_have_count(1)
    expect(page.get_by_label("LoRA rank r")).to_be_focused()


def test_a_job_without_a_dataset_is_refused_at_the_dataset(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/dashboard/jobs/new")

    page.get_by_role("button", name="Start the job").click()

    expect(page.get_by_label("Dataset", exact=True)).to_be_focused()
    expect(page.locator("#dataset-error")).to_contain_text("Choose a dataset")


def test_a_rejected_file_shows_its_lines(page: Page, service: Service, tmp_path: Path) -> None:
    good = '{"instruction": "a", "response": "b"}\n'
    file = tmp_path / "broken.jsonl"
    file.write_text(f"{good}{good}{{broken\n{good}")
    page.goto(f"{service.url}/dashboard/datasets")
    open_upload(page)
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").fill("broken rows")
    page.get_by_role("button", name="Upload").click()

    report = page.locator("#upload-report")
    expect(report).to_contain_text("1 of 4 rows cannot be used")
    expect(report.locator("tbody tr td").first).to_have_text("3")
    row = page.get_by_role("row", name="broken rows")
    expect(row.locator(".badge")).to_have_text("rejected")
    row.get_by_role("link", name="Read the report").click()
    expect(page.get_by_role("region", name="Report").locator("tbody tr td").first).to_have_text("3")


def test_a_file_of_the_wrong_type_is_refused_at_the_file(page: Page, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "scan.pdf"
    file.write_bytes(b"%PDF")
    page.goto(f"{service.url}/dashboard/datasets")
    open_upload(page)
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Upload").click()

    expect(page.locator("#file-error")).to_contain_text("send JSONL or CSV")


# --- Every page -------------------------------------------------------------------------------------------------


def test_what_users_write_is_text_and_nothing_else(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "x.jsonl", [{"instruction": json.dumps({"log": f"{ATTACK}\n"}), "response": "yes"}])
    dataset = client.wait_for_dataset(client.upload(rows, name=ATTACK)["id"])
    request = {"name": ATTACK, "model": "tiny", "dataset": {"id": dataset["id"]}, "metadata": {ATTACK[:60]: ATTACK}}

    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    job_id = client.post("/jobs", request)["id"]
    expect(page.locator(f"tr[data-id={job_id}]").get_by_role("link")).to_have_text(ATTACK)
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")
    expect(page.locator("#log")).to_contain_text(ATTACK)
    expect_status(page, "succeeded")
    expect(page.get_by_role("heading", level=1)).to_contain_text(ATTACK)
    expect(page.locator("#facts")).to_contain_text(ATTACK)
    for path in (f"jobs/{job_id}", "jobs", "datasets", f"datasets/{dataset['id']}", "jobs/new"):
        page.goto(f"{service.url}/dashboard/{path}")
        assert page.locator("img[src=x]").count() == 0, path
        assert ATTACK in (page.locator("main").text_content() or ""), path


@pytest.mark.parametrize(
    "path",
    ["/sign-in", "/jobs", "/jobs/job_missing", "/nothing", "/static/style.css", "/static/missing.js", "/session"],
)
def test_every_answer_has_the_security_headers(service: Service, path: str) -> None:
    headers = httpx.get(f"{service.url}/dashboard{path}").headers

    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "script-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_pages_are_read_without_javascript(
    context: BrowserContext, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"name": "plain"}, steps=2)
    wait_for_status(client, job_id, "succeeded")
    assert context.browser is not None
    plain = context.browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    sign_in(page, service.url, service.key)
    page.get_by_role("link", name="plain").click()

    expect(page.locator("h1 .badge")).to_have_text("succeeded")
    expect(page.locator("#log")).to_contain_text("step 2/2")
    expect(page.locator("#events")).to_contain_text("job created")
    expect(page.locator("[data-metric=loss]")).to_have_text("1.5")
    plain.close()


def test_pages_fit_a_narrow_window_and_every_control_has_a_name(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"name": "n" * 200}, steps=2)
    job = wait_for_status(client, job_id, "succeeded")
    page.set_viewport_size({"width": 700, "height": 900})

    for path in ("jobs", f"jobs/{job_id}", "jobs/new", "datasets", f"datasets/{job['dataset']['id']}"):
        page.goto(f"{service.url}/dashboard/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 700, path
        assert page.evaluate(LIST_NAMELESS) == [], path


LIST_NAMELESS = """
    [...document.querySelectorAll("input:not([type=hidden]), select, progress, button, a")]
        .filter(element => !(element.labels?.length || element.ariaLabel || element.textContent.trim()))
        .map(element => element.outerHTML)
"""


def test_a_missing_page_is_a_page(page: Page, service: Service) -> None:
    response = page.goto(f"{service.url}/dashboard/jobs/job_missing")

    assert response is not None
    assert response.status == 404
    expect(page.get_by_text("there is no job 'job_missing'")).to_be_visible()


# --- Steps of the above -----------------------------------------------------------------------------------------


def expect_status(page: Page, status: str) -> None:
    expect(page.locator("h1 .badge")).to_have_text(status)


def cancel_in_page(page: Page) -> None:
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()


def open_upload(page: Page) -> None:
    """The form is open already where there is no dataset yet."""
    if not page.get_by_label("File").is_visible():
        page.get_by_text("Upload a dataset").click()


def set_verification(service: Service, job_id: str, verification: dict[str, object]) -> None:
    assert service.settings.database_url is not None
    with psycopg.connect(service.settings.database_url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET verification = %s WHERE id = %s", [Jsonb(verification), job_id])


def add_attempts(service: Service, job_id: str) -> None:
    """One that ended by its machine's fault, and one that went on from its checkpoint."""
    lost = Jsonb({"code": "worker_lost", "message": "its worker is gone"})
    assert service.settings.database_url is not None
    with psycopg.connect(service.settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO attempts (job_id, number, tenant_id, lease_epoch, worker_id, hostname, ended_at, outcome,"
            " fault, reason, resumed_from_step, last_step) VALUES"
            " (%(job)s, 1, 'default', 1, 'w', 'gpu-host-1', now(), 'queued', 'infrastructure', %(lost)s, NULL, 57),"
            " (%(job)s, 2, 'default', 2, 'w', 'gpu-host-2', now(), 'paused', 'none', NULL, 40, 61)",
            {"job": job_id, "lost": lost},
        )
        connection.execute("UPDATE jobs SET attempt = 2 WHERE id = %s AND finished_at IS NULL", [job_id])


def test_a_dataset_says_which_rows_are_there_twice(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    rows = [{"instruction": "What is asthma?", "response": "A disease of the airways."}] * 3
    dataset = client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", rows))["id"])
    page.goto(f"{service.url}/dashboard/datasets/{dataset['id']}")
    section = page.get_by_role("region", name="Duplicates and decontamination")

    expect(section).to_contain_text("2 rows: 2 duplicate row")
    section.get_by_text("Which rows").click()
    expect(section.locator("tbody tr")).to_have_count(1)
    expect(section.locator("tbody tr")).to_contain_text("2, 3")


def test_a_dataset_says_how_long_its_rows_are(page: Page, service: Service, client: Client, tmp_path: Path) -> None:
    rows = [{"instruction": "q" * 10, "response": "a" * length} for length in (10, 10, 10, 1000)]
    dataset = client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", rows))["id"])
    page.goto(f"{service.url}/dashboard/datasets/{dataset['id']}")
    section = page.get_by_role("region", name="Lengths")

    expect(section.locator("tbody tr")).to_have_count(2)
    numbers = section.locator("tbody td.num")
    expect(numbers).to_have_text(["22", "3", "75.0 %", "1,024", "1", "100.0 %"])


def test_a_person_answers_for_the_identifiers_of_a_dataset(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    rows = [{"instruction": "Patient: Maria Kowalski, call 617-555-0132", "response": "Rest."}]
    dataset = client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", rows), name="a ward")["id"])
    page.goto(f"{service.url}/dashboard/datasets/{dataset['id']}")
    section = page.get_by_role("region", name="Identifiers of patients")

    expect(section).to_contain_text("2 found by rule set")
    section.get_by_text("Where they stand").click()
    expect(section.locator("tbody tr")).to_have_count(2)
    section.get_by_label("Name of the person").fill("Ann Roe")
    section.get_by_role("button", name="Answer for them").click()
    expect(section).to_contain_text("attestation: between 20 and 2000 characters")
    section.get_by_label("Why they are none").fill("This patient is made up for teaching.")
    section.get_by_role("button", name="Answer for them").click()

    expect(section).to_contain_text("Ann Roe answered for it")
    expect(section.get_by_role("button")).to_have_count(0)
    expect(page.locator("body")).not_to_contain_text("Kowalski")


def test_identifiers_are_replaced_where_the_upload_asks_for_it(page: Page, service: Service, tmp_path: Path) -> None:
    rows = [{"instruction": "Patient: Maria Kowalski, call 617-555-0132", "response": "Rest.", "ward_patient": "A-1"}]
    page.goto(f"{service.url}/dashboard/datasets")
    open_upload(page)
    page.get_by_label("File").set_input_files(write_rows(tmp_path / "ward.jsonl", rows))
    expect(page.get_by_label("Placeholders")).not_to_be_visible()
    page.get_by_label("If identifiers of patients are found").select_option("replace")
    page.get_by_label("Field that says whose row it is").fill("ward_patient")
    page.get_by_role("button", name="Upload").click()

    expect(page.get_by_role("status")).to_contain_text("ward.jsonl: ready, 1 rows.")
    expect(page.get_by_label("Placeholders")).not_to_be_visible()
    page.get_by_role("link", name="ward.jsonl").first.click()
    section = page.get_by_role("region", name="Identifiers of patients")
    expect(section).to_contain_text("Replaced by placeholders: 1 mrn, 1 name, 1 phone, in 1 of 1 rows")
    expect(section).to_contain_text("No identifier was found by rule set")


# --- Decisions --------------------------------------------------------------------------------------------------

REASON = "We looked at every answer, and this one is right for our wards."


def decide(page: Page, form: str, button: str, name: str = "Ann Roe", reason: str = REASON) -> None:
    place = page.get_by_role("form", name=form)
    place.get_by_label("Your name").fill(name)
    place.get_by_label("Why").fill(reason)
    place.get_by_role("button", name=button).click()


def test_people_decide_about_findings_and_release_an_adapter(
    page: Page, service: Service, client: Client, colleague: Client, tmp_path: Path
) -> None:
    critical = {"checks": True, "critical": ["chest-pain-01"]}
    job_id = submit_script(client, tmp_path, {"safety": {"on_violation": "hold"}}, **critical)
    wait_for_status(client, job_id, "held")
    page.goto(f"{service.url}/dashboard/reviews")
    page.get_by_role("link", name=job_id).click()
    expect(page.get_by_role("heading", name="Findings that wait for a decision: 1")).to_be_visible()
    expect(page.get_by_text("wait and rest")).to_be_visible()

    decide(page, "review", "Accept the findings", reason="fine")
    expect(page.locator("#review-reason-error")).to_contain_text("at least 20 characters")
    decide(page, "review", "Accept the findings")
    expect(page.get_by_text("Ann Roe, ")).to_contain_text("awaiting second")
    decide(page, "review", "Accept the findings", name="Ben Poe")
    expect(page.get_by_role("form", name="review").get_by_role("alert")).to_contain_text("a second person")
    (review,) = client.get("/reviews", job=job_id)["data"]
    colleague.post(f"/reviews/{review['id']}/approve", {"reviewer": "Ben Poe", "reason": REASON})
    expect(page.locator("#head .badge")).to_have_text("succeeded", timeout=30_000)

    decide(page, "adapter", "Approve")
    expect(page.locator("#adapter .badge")).to_have_text("approved")
    decide(page, "adapter", "Release")
    expect(page.locator("#adapter .badge")).to_have_text("released")
    assert client.get(f"/adapters/{job_id}")["state"] == "released"
    decide(page, "adapter", "Withdraw")
    expect(page.locator("#adapter .badge")).to_have_text("rejected")


def test_what_stands_in_the_way_of_a_release_is_shown_and_a_review_is_asked_for(
    page: Page, service: Service, client: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"safety": None})
    wait_for_status(client, job_id, "succeeded")
    page.goto(f"{service.url}/dashboard/jobs/{job_id}")

    expect(page.locator(".blockers")).to_contain_text("open findings of the safety checks: 1")
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    page.get_by_role("button", name="Let people decide").click()
    expect(page.get_by_role("heading", name="Findings that wait for a decision: 1")).to_be_visible()
    decide(page, "review", "Reject")
    expect(page.locator("#adapter .badge")).to_have_text("rejected")


# --- The API's description ---------------------------------------------------------------------------------------


def test_the_description_is_behind_the_sign_in_and_its_requests_work(
    visitor: Page, service: Service, context: BrowserContext
) -> None:
    requested: list[str] = []
    visitor.on("request", lambda request: requested.append(request.url))
    visitor.goto(f"{service.url}/docs")
    expect(visitor).to_have_url(f"{service.url}/dashboard/sign-in?next=%2Fdashboard%2Fdocs")
    visitor.get_by_label("API key").fill(service.key)
    visitor.get_by_role("button", name="Sign in").click()

    expect(visitor.get_by_role("button", name="Authorize")).to_be_visible()
    operation = visitor.locator("#operations-models-get_models")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()

    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
    assert [url for url in requested if not url.startswith((service.url, "data:"))] == []
