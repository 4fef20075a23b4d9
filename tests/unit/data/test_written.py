import pytest

from lasa.data.written import as_read, is_empty


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I\u200b ca\u00adn't", "i can't"),
        ("Ｉ’ｍ　ｓｏｒｒｙ", "i'm sorry"),
        ("\u202bلا أَسْتَطِيعُ\u202c", "لا أستطيع"),
        ("لا أستـــطيع", "لا أستطيع"),
        ("**I** ʼm _so_ sоrry", "i 'm so sorry"),  # a Cyrillic o
        ("죄송합니다", "죄송합니다"),
        ("не могу", "не могу"),  # Cyrillic stays Cyrillic
    ],
)
def test_what_looks_the_same_reads_the_same(written, read):
    assert as_read(written) == read


def test_a_text_without_a_visible_character_is_empty():
    assert is_empty("\u200b\u00ad \n\ufeff")
    assert not is_empty("\u200b.")
