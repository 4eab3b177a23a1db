// Every visible piece of text whose contrast with what lies behind it is below the limit.
// Contrast ratio as in WCAG 2.2; colours with alpha are composed from the page upwards.
const limit = arguments[0];

const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below) =>
  [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map((value) => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ratio(a, b) {
  const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (light + 0.05) / (dark + 0.05);
}
function ancestors(element) {
  const chain = [];
  for (let node = element; node; node = node.parentElement) chain.unshift(node);
  return chain;
}
function background(element) {
  let colour = [255, 255, 255, 1];
  for (const node of ancestors(element))
    colour = over(rgba(getComputedStyle(node).backgroundColor), colour);
  return colour;
}

const failures = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim()) continue;
  if (element.closest("script, style, noscript, mjx-assistive-mml, svg, dialog:not([open])")) continue;
  if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  const box = element.getBoundingClientRect();
  if (box.width < 2 || box.height < 2) continue;
  const behind = background(element);
  const ink = rgba(getComputedStyle(element).color);
  ink[3] *= ancestors(element).reduce((o, node) => o * getComputedStyle(node).opacity, 1);
  const contrast = ratio(over(ink, behind), behind);
  if (contrast < limit)
    failures.push({
      text: walker.currentNode.textContent.trim().slice(0, 40),
      where: element.tagName + "." + element.className + " < " + element.parentElement?.className,
      ink: getComputedStyle(element).color,
      behind: behind.map(Math.round).slice(0, 3).join(","),
      contrast: Math.round(contrast * 100) / 100,
    });
}
return failures;
