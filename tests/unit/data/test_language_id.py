import pytest

from lasa.data.language_id import identify_language, identify_languages

TEXTS = {
    "en": "The library opens at nine in the morning and closes late in the evening.",
    "zh": "图书馆早上九点开门,晚上很晚才关门。",
    "ko": "도서관은 아침 아홉 시에 열고 밤늦게 닫습니다.",
    "it": "La biblioteca apre alle nove del mattino e chiude la sera tardi.",
    "vi": "Thư viện mở cửa lúc chín giờ sáng và đóng cửa vào buổi tối muộn.",
    "ar": "تفتح المكتبة أبوابها في الساعة التاسعة صباحا وتغلق في وقت متأخر من المساء.",
    "th": "ห้องสมุดเปิดเวลาเก้าโมงเช้าและปิดตอนค่ำ",
    "bn": "গ্রন্থাগারটি সকাল নয়টায় খোলে এবং সন্ধ্যায় দেরিতে বন্ধ হয়।",
    "sw": "Maktaba inafunguliwa saa tatu asubuhi na inafungwa usiku sana kila siku.",
    "jv": "Perpustakaan iki bukak jam sanga esuk lan tutup nalika wis wengi banget.",
    "id": "Perpustakaan itu buka jam sembilan pagi karena banyak mahasiswa belajar di sana bersama teman.",
    "de": "Die Bibliothek öffnet um neun Uhr morgens und schließt spät am Abend.",
    "fr": "La bibliothèque ouvre à neuf heures du matin et ferme tard le soir.",
    "es": "La biblioteca abre a las nueve de la mañana y cierra tarde por la noche.",
    "ru": "Библиотека открывается в девять утра и закрывается поздно вечером.",
    "ja": "図書館は朝九時に開館し、夜遅くに閉館します。",
    "hi": "पुस्तकालय सुबह नौ बजे खुलता है और देर शाम को बंद होता है।",
}


@pytest.mark.parametrize("language", TEXTS)
def test_each_language_is_recognised(language: str) -> None:
    assert identify_language(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "42", "1 + 1 = 2", "?!", "a"])
def test_text_without_letters_has_no_language(text: str) -> None:
    assert identify_language(text) is None


def test_an_english_name_does_not_outweigh_a_chinese_sentence() -> None:
    assert identify_language("请使用 Visual Studio Code 打开文件") == "zh"


def test_kana_among_han_signs_is_japanese() -> None:
    assert identify_language("東京都の図書館は開館中") == "ja"


def test_one_javanese_word_in_indonesian_is_not_javanese() -> None:
    assert identify_language("Saya tinggal di kota itu dan banget suka dengan makanan di sana.") == "id"


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("How do I water the plant of my neighbour? 如何给邻居的植物浇水，请详细说明步骤。", {"en", "zh"}),
        ("Come posso annaffiare la pianta del vicino?\nHow do I water the plant of my neighbour?", {"it", "en"}),
        ("How do I say 你好 to my neighbour in the morning?", {"en"}),
        ("12 34", set()),
    ],
)
def test_every_language_of_a_text_is_found_and_a_quoted_word_is_none(text, languages):
    assert identify_languages(text) == languages
