"""The watch that the browser tests keep would see what it must see."""

import pytest

BAD = {
    "a request": "<img src='http://example.invalid/x.png'>",
    "an error": "<script>throw new Error('bad')</script>",
    "a dialog": "<script>alert(1)</script>",
    "a script that ran": "<script>window.hacked = 1</script>",
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_seen(open_page, tmp_path, what):
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html>" + BAD[what], encoding="utf-8")
    watched = open_page(path)
    watched.page.wait_for_load_state("load")
    with pytest.raises(AssertionError):
        watched.assert_quiet()
