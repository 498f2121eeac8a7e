"""What the words mean: one plain sentence for each term, shared by help texts, the report and docs.

`GLOSSARY[term]` is the sentence, without markup. docs/concepts.md shows all of them as a table (written by
`python docs/write_pages.py`), and the report shows them as tooltips of its column heads.
"""

GLOSSARY: dict[str, str] = {
    # The network and its evidence
    "kernel": (
        "One output channel of a convolution layer: one filter, which fills one map of numbers for each "
        "image."
    ),
    "map": "The output of one kernel for one image: height x width numbers.",
    "logit": "The network's raw score for one category, before softmax.",
    "evidence": (
        "How strongly a category's logit depends on each point of a kernel's map: the absolute "
        "gradient, or the absolute product of gradient and map (gradient_x_activation)."
    ),
    "draws": (
        "How many times noise is added to a layer's map before the gradient is taken; the evidence is "
        "the mean over all of them (J in the paper)."
    ),
    "delta": "The noise added to a map is uniform between -delta and +delta, in units of the map.",
    "share": (
        "The scale that divides the penalised evidence by all evidence of the layer, so that only where "
        "it lies counts, not how much there is."
    ),
    "scale": (
        "How a constraint measures evidence: none (as it is, as in the paper) or share (divided by all "
        "evidence of the layer)."
    ),
    # The diagnosis
    "category": "One of the classes that the network tells apart.",
    "confidence": "The softmax probability of the predicted category, between 0 and 1.",
    "sifting": (
        "Choosing the images that a diagnosis is made from: training images that are classified "
        "correctly with high confidence, the most confident first."
    ),
    "images behind the diagnosis": (
        "How many sifted images the numbers of a category are averaged over; 0 means not diagnosed."
    ),
    "correlated": (
        "A kernel is correlated with a category if it carries much of the category's evidence: at least "
        "the share theta of the way from the weakest to the strongest kernel of the layer."
    ),
    "theta": (
        "The height, between 0 and 1, from which a kernel counts as correlated: 0 is the layer's "
        "weakest kernel for the category, 1 the strongest."
    ),
    "agreement": (
        "How alike the evidence of one image is to that of the other images of its category: 1 means "
        "the same kernels in the same proportion, 0 none in common."
    ),
    "drift": (
        "How far a kernel's activity is from what the batch-norm layer behind it remembers from "
        "training, in standard deviations."
    ),
    "evidence on background": ("The part of the evidence that lies outside the object's mask, in percent."),
    "mask": (
        "A black and white picture as large as the image: white on the object, black on the background."
    ),
    "annotated": "An annotated image is one that has an object mask or box.",
    "cause": (
        "The reason for a wrong prediction that the numbers support best; unknown where they support none."
    ),
    # The treatment
    "base": "The network as you gave it, before any further training.",
    "arm": (
        "One way of training the base further; all arms start from the same weights and see the same images."
    ),
    "control": "The arm that is trained further on the loss alone; every gain is measured against it.",
    "control arm": "Another name for the control.",
    "treated": "The arm that is trained further under constraints.",
    "remedy": (
        "What one arm does differently from the control: constraints, swapped backgrounds, label "
        "smoothing and so on."
    ),
    "constraint": "A penalty added to the training loss that grows with evidence in the wrong place.",
    "channel-wise": (
        "The constraint against evidence on kernels that are not correlated with the predicted "
        "category, and against all evidence for the runner-up (Eq. 5 of the paper)."
    ),
    "space-wise": (
        "The constraint against evidence on the background; it needs object masks (Eq. 6 of the paper)."
    ),
    "runner-up": "The category with the second highest logit.",
    "weight": "The number that a constraint's penalty is multiplied by; auto sets it from tau.",
    "tau": (
        "How strong a constraint with weight auto is: the size of its gradient relative to that of the "
        "loss, so 0.3 means about a third."
    ),
    "swap": (
        "The remedy that trains on objects before the backgrounds of other images, cut out along their "
        "masks; at most half of each batch is changed."
    ),
    "dfr": (
        "The remedy that solves the last linear layer anew on held-out images, in which categories and "
        "backgrounds are balanced (deep feature reweighting)."
    ),
    "weighed-errors": (
        "The remedy that weighs training images that the network gets wrong five times as much in the loss."
    ),
    "smoothing": "The remedy that trains with label smoothing of 0.1.",
    "averaging": (
        "The remedy that returns the mean of the weights of the second half of the training steps."
    ),
    "rrr": (
        "The remedy that penalises input gradients on the background (right for the right reasons); it "
        "needs masks."
    ),
    "balance": (
        "The remedy that raises the logits of rare categories after the training, by as much as validation "
        "images say."
    ),
    "balanced-head": (
        "The remedy that solves the last linear layer anew after the training, with all categories alike."
    ),
    "batchnorm": ("The remedy that measures batch-norm's running mean and variance anew after the training."),
    "damaged-layers": (
        "The remedy that measures batch-norm anew and then trains only the layers whose kernels have changed."
    ),
    "decay": "The remedy that trains with ten times the weight decay.",
    "augment": "The remedy that changes training images more strongly (TrivialAugment).",
    "sam": (
        "The remedy that minimises the loss nearby too, with two passes in each step of the second half "
        "(sharpness-aware minimisation)."
    ),
    "ema": "The remedy that returns the moving average of the weights.",
    "regularise": "The remedies decay, augment, smoothing and ema together.",
    "soup": "The mean of the weights of all seeds of an arm.",
    "penalty": "The value of a constraint on one batch, before it is multiplied by its weight.",
    "recipe": (
        "How all arms are trained: epochs, optimiser, learning rate, weight decay, batch-norm and precision."
    ),
    "prescription": (
        "What a treatment was set to do: constraints, layers, weights, and what was measured to set them."
    ),
    # The proof
    "gain": (
        "The accuracy of an arm minus that of the control, in percentage points, on the same images and "
        "seeds."
    ),
    "interval": (
        "The range in which the true gain lies with 95 % confidence, for other images and other seeds."
    ),
    "p-value": (
        "How often a difference at least as large would appear by chance if the arm were no different "
        "from the control; with several arms it is corrected for their number (Holm)."
    ),
    "verdict": (
        "The result in words: helped (the whole interval is above 0 and no other split lost too much), "
        "harmed, or no evidence."
    ),
    "seed": "The number that all randomness starts from; the same seed gives the same result.",
    "seeds": "How many times every arm is trained, each time with other random numbers.",
    "split": "A part of the data that is kept apart: train, validation, or one of the test splits.",
    "primary split": "The test split whose gain decides the verdict.",
    "swapped": (
        "The test split of annotated test images, each object before the background of another category."
    ),
    "i.i.d.": "Test images of the same kind as the training images, backgrounds included.",
    "accuracy": "The share of images that are classified correctly, in percent.",
    "worst category": "The lowest accuracy of any category.",
    "balanced accuracy": "The mean accuracy of the categories, each weighing the same.",
    "calibration error": (
        "How far confidence and accuracy are apart, in percent, averaged over groups of images of "
        "similar confidence; 0 is perfect."
    ),
    "repaired": "Images that the control gets wrong and the arm right in most seeds.",
    "broken": "Images that the control gets right and the arm wrong in most seeds.",
    "run": "The folder that a command writes: settings, results, weights and report.",
}
