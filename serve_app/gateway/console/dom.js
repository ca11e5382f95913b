// Elements, made without markup: what comes from a server or a model is set as text and never parsed.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`text`: its text; a function: a listener; false, null: left out) and children. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same, of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** Set an element's text where it has changed, so that nothing is drawn anew for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Keep one part for each key, in order: made by `make(key)` when it is new, removed when it is gone. */
export function keepParts(parent, parts, keys, make) {
  for (const [key, part] of parts) {
    if (keys.includes(key)) continue;
    part.root.remove();
    parts.delete(key);
  }
  keys.forEach((key, index) => {
    if (!parts.has(key)) parts.set(key, make(key));
    const { root } = parts.get(key);
    if (parent.children[index] !== root) parent.insertBefore(root, parent.children[index] ?? null);
  });
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
