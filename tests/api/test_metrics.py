"""What becomes a series of `/metrics`, and what does not."""

from tests.api.harness import Api


def series(api: Api) -> set[str]:
    """Return every series, without its value."""
    api.client.get("/metrics")  # counts itself when it is answered
    lines = api.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if line.startswith("octet_")}


def ask_for_unknown(api: Api, number: int) -> None:
    name = f"nobody-{number}"
    for path in (f"/v1/models/{name}/predict", f"/v2/models/{name}/infer"):
        assert api.client.post(path, json={"inputs": {}}).status_code in {404, 422}
    for reference in (f"{name}@int8", f"{name}:7", "no name at all!" * number):
        assert api.client.post("/predict", json={"model": reference, "inputs": {}}).status_code in {404, 422}


def test_a_thousand_requests_to_unknown_models_add_no_series(api: Api) -> None:
    ask_for_unknown(api, 1)
    before = series(api)
    for number in range(2, 202):
        ask_for_unknown(api, number)
    assert series(api) == before
    assert not any("nobody" in one for one in before)


def test_methods_and_paths_that_nobody_serves_share_a_series(api: Api) -> None:
    api.client.request("MKCOL", "/nowhere/0")
    before = series(api)
    for number, method in enumerate(("MKCOL", "PROPFIND", "LOCK", "SEARCH", "NOTIFY")):
        api.client.request(method, f"/nowhere/{number}")
    assert series(api) == before
