"""Fixed refusals in ten languages, for the guard's `refuse` action."""

REFUSALS = {
    "en": "Sorry, I can't help with that request.",
    "zh": "抱歉，我无法协助处理这个请求。",
    "ko": "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    "it": "Mi dispiace, non posso aiutarti con questa richiesta.",
    "vi": "Xin lỗi, tôi không thể giúp bạn với yêu cầu này.",
    "ar": "عذرًا، لا أستطيع المساعدة في هذا الطلب.",
    "th": "ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้",
    "bn": "দুঃখিত, আমি এই অনুরোধে সাহায্য করতে পারব না।",
    "sw": "Samahani, siwezi kukusaidia na ombi hilo.",
    "jv": "Nyuwun pangapunten, aku ora bisa mbiyantu panyuwunan kuwi.",
}


def refusal_message(language: str | None) -> str:
    """The refusal in a language; in all ten, a line each, where the user's language is unknown or not among them.

    Args:
        language: BCP-47 code, or None.
    """
    return REFUSALS.get(language or "", "\n".join(REFUSALS.values()))
