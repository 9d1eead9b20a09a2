"""Messages of libraries in one line."""

from oclam.errors import one_line


def test_an_error_s_text_is_on_one_line_and_not_endless():
    assert one_line(ValueError("line 1:\n\n\tno  key 'a'\n")) == "line 1: no key 'a'"
    assert one_line(ValueError("ab " * 1000)) == "ab " * 100
