"""Words that mean something to the doctor, in lower case: English ones, and Chinese ones as parts of a text."""

from __future__ import annotations

STOP_WORDS = frozenset(
    """a an the this that these those there here it its it's he she his her him they them their we us our you your i my
    me is are was were be been being am do does did done has have had having can could will would should may might must
    of in on at by for from to into onto with without within over under above below behind between among near beside
    next front through across around against along about up down out off as like and or but nor not no so than then
    while who whom whose which what when where how very some any each every other another both all more most such one
    two three several many""".split()
)
"""Words that hold an English sentence together."""

CHINESE_STOP = frozenset(
    "的了在是和与有着一个个这那其之于以及为被把他她它们我你您里中上下就也都而或很只张幅位名条只件种些"
)
"""Characters with which no Chinese or Japanese word of interest begins or ends."""

MEDIUM = frozenset(
    """illustration drawing sketch painting watercolor watercolour gouache oil acrylic pastel charcoal ink lineart
    linework photo photograph photography photorealistic render rendering 3d cgi icon emoji pictogram logo vector
    clipart anime manga cartoon comic pixel voxel lowpoly engraving woodcut linocut etching lithograph print poster
    collage mosaic style stylized flat artwork art digital concept monochrome grayscale greyscale sepia contrast palette
    brushstrokes crosshatching halftone cel-shaded""".split()
)
"""Words for how a picture is made and what it looks like as a whole."""
CHINESE_MEDIUM = (
    "插画 绘画 油画 水彩 素描 线稿 速写 照片 摄影 渲染 图标 像素 漫画 动漫 卡通 国画 水墨 版画 海报 矢量 风格 扁平 "
    "画风 厚涂 赛璐璐 黑白"
).split()

TRAITS = frozenset(
    """hair haired blonde blond brunette redhead ginger ponytail pigtails twintails braid braids bangs bob eyes eyed
    eyebrows eyelashes nose lips jaw cheekbones freckles mole scar dimples beard mustache moustache stubble bald skin
    complexion face wrinkles""".split()
)
"""Words for what a person keeps whatever the picture."""
CHINESE_TRAITS = (
    "头发 长发 短发 黑发 金发 白发 银发 卷发 直发 刘海 马尾 双马尾 辫 眼睛 瞳 蓝眼 眉 鼻子 嘴唇 雀斑 痣 疤 胡子 胡须 "
    "皮肤 脸型 五官"
).split()

CLASSES = frozenset(
    """person people man men woman women boy girl male female guy lady child kid baby toddler teenager character human
    dog puppy cat kitten horse bird animal pet creature monster robot mascot toy doll plushie figurine car vehicle
    motorcycle bicycle building house shoe shoes sneaker sneakers bag backpack bottle cup mug vase teapot chair sofa
    lamp clock watch product object style artstyle 1girl 1boy""".split()
)
"""Words for the kind of thing that a trigger stands for."""
CHINESE_CLASSES = tuple(
    "人 男人 女人 男孩 女孩 少女 少年 女性 男性 角色 人物 狗 猫 动物 玩偶 玩具 汽车 鞋 包 产品 风格 画风".split()
)

QUALITY = frozenset(
    """masterpiece best quality high-quality highres absurdres detailed ultra-detailed hd uhd 4k 8k solo realistic
    beautiful aesthetic trending artstation amazing stunning score_9 score_8_up score_7_up""".split()
)
"""Words that are put in front of captions by habit and call nothing."""

OPENINGS = (
    *("a photo of", "a photograph of", "a picture of", "an image of", "an illustration of", "a drawing of"),
    *("a painting of", "photo of", "picture of", "image of", "a close-up of", "a close up of", "a rendering of"),
    *("the image shows", "the image depicts", "the image features", "the picture shows", "the photo shows"),
    *("this image shows", "this image depicts", "this image features", "this is a", "this is an", "in this image"),
    *("in the image", "there is", "there are", "we can see", "here is", "image shows"),
    *(
        "这张图片",
        "这张照片",
        "这幅画",
        "这是一张",
        "这是一幅",
        "图中",
        "图片中",
        "画面中",
        "图片展示",
        "一张照片",
        "一张图片",
    ),
)
"""How captions begin that a template or a chatty model wrote."""

FRAMINGS = {
    "close-up": ("close-up", "close up", "closeup", "headshot", "face shot", "特写", "大头照"),
    "half": (
        *("upper body", "half body", "half-body", "bust", "waist up", "cowboy shot", "medium shot", "portrait"),
        *("半身", "上半身", "中景"),
    ),
    "full": ("full body", "full-body", "full shot", "head to toe", "whole body", "全身"),
    "far": ("wide shot", "long shot", "distant", "far away", "landscape shot", "远景", "全景"),
}
"""How much of somebody a picture shows, as captions put it."""

BACKGROUNDS = (
    *("white background", "black background", "grey background", "gray background", "simple background"),
    *("plain background", "studio background", "transparent background", "blurred background", "blurry background"),
    *("白色背景", "黑色背景", "灰色背景", "简单背景", "纯色背景", "透明背景", "虚化背景"),
)

FUNCTION_WORDS = {
    "English": frozenset("the and with of is are on in her his a an at wearing standing".split()),
    "German": frozenset("der die das und mit ein eine einem einer ist auf im vor den von für".split()),
    "French": frozenset("le la les des et avec une un est sur dans du au aux qui son".split()),
    "Spanish": frozenset("el la los las y con una un es en del al por que su sobre".split()),
    "Italian": frozenset("il lo la gli e con una un è su nel della di che sul".split()),
    "Portuguese": frozenset("o os e com uma um é em na da por que sobre".split()),
    "Dutch": frozenset("de het een en met op voor zijn haar aan uit".split()),
}
"""Words by which sentences in Latin letters are told apart."""
