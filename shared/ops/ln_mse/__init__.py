from shared.ops.ln_mse.op import ln_mse
from shared.ops.ln_mse.reference import ln_mse_reference
