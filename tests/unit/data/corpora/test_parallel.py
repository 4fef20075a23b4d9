from pathlib import Path

import pytest

from lasa.data.corpora.parallel import load_ntrex, load_nusax_mt, load_tatoeba
from lasa.data.prompts import check_parallel
from lasa.errors import DataError


def test_ntrex_lines_share_their_id_over_bom_crlf_and_unicode_line_ends(tmp_path: Path) -> None:
    (tmp_path / "newstest2019-src.eng.txt").write_bytes("One\u2028still one\r\nTwo\u00a0\r\n".encode())
    (tmp_path / "newstest2019-ref.swa.txt").write_bytes(b"\xef\xbb\xbfMoja\r\nMbili\r\n")
    (tmp_path / "newstest2019-ref.zho-CN.txt").write_bytes("一\r\n二\r\n".encode())
    (tmp_path / "newstest2019-ref.zho-TW.txt").write_bytes("一\r\n二\r\n".encode())
    prompts = load_ntrex(tmp_path)
    assert [(p.query_id, p.language, p.text) for p in prompts] == [
        ("ntrex:0", "en", "One\u2028still one"),
        ("ntrex:1", "en", "Two"),
        ("ntrex:0", "sw", "Moja"),
        ("ntrex:1", "sw", "Mbili"),
        ("ntrex:0", "zh", "一"),
        ("ntrex:1", "zh", "二"),
    ]
    assert all(p.harmful is False for p in prompts)
    check_parallel(prompts)


def test_ntrex_files_of_different_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "newstest2019-src.eng.txt").write_text("One\nTwo\n", encoding="utf-8")
    (tmp_path / "newstest2019-ref.swa.txt").write_text("Moja\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 lines"):
        load_ntrex(tmp_path)


def test_tatoeba_ids_do_not_collide_between_pairs(tmp_path: Path) -> None:
    for code, english, other in (("jav", "Rain", "Udan"), ("cmn", "Tea", "茶"), ("tlh", "Ship", "Duj")):
        (tmp_path / f"tatoeba.{code}-eng.eng").write_text(english + "\n", encoding="utf-8")
        (tmp_path / f"tatoeba.{code}-eng.{code}").write_text(other + "\n", encoding="utf-8")
    prompts = load_tatoeba(tmp_path)
    assert {(p.query_id, p.language, p.text) for p in prompts} == {
        ("tatoeba:jav/0", "en", "Rain"),
        ("tatoeba:jav/0", "jv", "Udan"),
        ("tatoeba:cmn/0", "en", "Tea"),
        ("tatoeba:cmn/0", "zh", "茶"),
    }


def test_a_missing_tatoeba_side_is_named(tmp_path: Path) -> None:
    (tmp_path / "tatoeba.jav-eng.eng").write_text("Rain\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tatoeba\.jav-eng\.jav"):
        load_tatoeba(tmp_path)


def test_nusax_indices_that_start_anew_per_split_do_not_collide(tmp_path: Path) -> None:
    header = ",indonesian,acehnese,english,javanese,sundanese\n"
    (tmp_path / "train.csv").write_text(header + '0,Enak,x,"Tasty ",Enak tenan,Ngeunah\n', encoding="utf-8")
    (tmp_path / "test.csv").write_text(header + "0,Mahal,x,Expensive,Larang,Mahal\n", encoding="utf-8")
    prompts = load_nusax_mt(tmp_path)
    assert {(p.query_id, p.text) for p in prompts if p.language in ("en", "jv")} == {
        ("nusax_mt:train/0", "Tasty"),
        ("nusax_mt:train/0", "Enak tenan"),
        ("nusax_mt:test/0", "Expensive"),
        ("nusax_mt:test/0", "Larang"),
    }
    assert {p.language for p in prompts} == {"en", "jv", "id", "su"}
