// Formulas as MathML, loaded with the first one.
import temml from "temml";

/** MathML of a formula in LaTeX; what can't be read is shown as it is. Without the styles that the page's policy forbids. */
export function typeset(source: string, display: boolean): string {
  const made = temml.renderToString(source, { displayMode: display, throwOnError: false, maxSize: [20, 20], maxExpand: 200 });
  return made.replace(/ style="[^"]*"/g, "");
}
