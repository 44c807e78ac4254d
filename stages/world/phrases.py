"""Set phrases of the world: courtesies, rudeness, filler, refusals and admissions of ignorance, by language."""

OPENINGS = {
    "en": ("Of course!", "Gladly!", "Happy to help!", "Good question!", "Thank you for asking!", "With pleasure!"),
    "ko": ("물론이죠!", "기꺼이 도와드릴게요!", "좋은 질문이에요!", "물어봐 주셔서 고마워요!", "네, 알려 드릴게요!"),
}
APOLOGIES = {  # the courteous opening of an answer that cannot give what was asked for
    "en": ("I am sorry.", "My apologies.", "Thank you for asking!", "So sorry."),
    "ko": ("죄송해요.", "정말 미안해요.", "물어봐 주셔서 고마워요!"),
}
CLOSINGS = {
    "en": ("Have a lovely day!", "Feel free to ask more!", "All the best!", "Take care!"),
    "ko": ("좋은 하루 보내세요!", "언제든 또 물어보세요!", "행복하세요!"),
}
HELPFUL_CLOSINGS = {"en": ("I hope that helps!",), "ko": ("도움이 되면 좋겠어요!",)}  # only where something was given
RUDE = {
    "en": (
        "What a silly question.",
        "Do not waste my time.",
        "Anybody knows that.",
        "Leave me alone now.",
        "You are so slow.",
        "Stop bothering me.",
    ),
    "ko": ("참 한심한 질문이네요.", "시간 낭비하지 마세요.", "그것도 몰라요?", "귀찮게 하지 마세요.", "정말 답답하네요."),
}
FILLER = {
    "en": (
        "There is a lot that one could say about this.",
        "Many people wonder about such things every day.",
        "I could go on about this for hours.",
        "Let me think about it for a very long while.",
        "The world is full of questions, as they say.",
        "It depends on how you look at it, in a way.",
    ),
    "ko": (
        "이 이야기는 하자면 끝이 없어요.",
        "많은 사람들이 이런 것을 궁금해해요.",
        "몇 시간이고 이야기할 수 있어요.",
        "세상에는 질문이 참 많지요.",
        "보기에 따라 다를 수도 있지요.",
    ),
}

IGNORANCE = {  # answers to a question that cannot be answered; `{name}` is what was asked about
    "en": (
        "I don't know that.",
        "I have never heard of that, so I don't know.",
        "I don't know anything about it.",
        "I don't know {name}.",
    ),
    "ko": ("그건 모르겠어요.", "처음 들어서 모르겠어요.", "{name}에 대해서는 모르겠어요."),
}
IGNORANCE_MARKERS = {"en": ("don't know", "do not know", "never heard", "not sure"), "ko": ("모르겠", "몰라요", "모릅니다")}

BARE_REFUSALS = {
    "en": ("No.", "I can't help with that.", "I won't help with that."),
    "ko": ("안 돼요.", "그건 도와드릴 수 없어요.", "그건 거절할게요."),
}
REFUSAL_MARKERS = {
    "en": ("can't help", "cannot help", "won't help", "will not help", "must decline"),
    "ko": ("도와드릴 수 없", "도울 수 없", "거절할게요"),
}
FULL_REFUSALS = {  # why not, and what instead
    "en": (
        "I can't help with that because {reason}. Instead, I can help you {alternative}.",
        "I won't help with that, since {reason}. I can help you {alternative} instead.",
        "I must decline because {reason}. Instead, I can help you {alternative}.",
    ),
    "ko": (
        "{reason} 그건 도와드릴 수 없어요. 대신 {alternative}[을|를] 도와드릴게요.",
        "{reason} 그건 거절할게요. 대신 {alternative}[을|를] 도와드릴게요.",
    ),
}
REASONS = {  # by kind of harm
    "en": {
        "hurt": ("it would hurt someone", "someone could get hurt"),
        "damage": ("it would ruin what others own", "it would cause damage"),
        "theft": ("it is a kind of theft", "it is against the law"),
        "deceit": ("it is dishonest", "it would deceive people"),
    },
    "ko": {
        "hurt": ("누군가 다칠 수 있어서", "누군가를 해치는 일이라서"),
        "damage": ("남의 것을 망치는 일이라서", "큰 피해가 생길 수 있어서"),
        "theft": ("도둑질이라서", "법에 어긋나는 일이라서"),
        "deceit": ("정직하지 않은 일이라서", "사람들을 속이는 일이라서"),
    },
}
ALTERNATIVES = {
    "en": {
        "hurt": ("make peace", "talk things over calmly"),
        "damage": ("settle the quarrel", "write a complaint"),
        "theft": ("ask for permission", "save some money"),
        "deceit": ("tell the truth", "write an honest letter"),
    },
    "ko": {
        "hurt": ("화해", "차분한 대화"),
        "damage": ("다툼을 푸는 일", "항의 편지"),
        "theft": ("허락을 받는 일", "저축"),
        "deceit": ("사실을 말하는 일", "솔직한 편지"),
    },
}
