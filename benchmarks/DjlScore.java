package benchmarks;

import ai.djl.Model;
import ai.djl.ModelException;
import ai.djl.inference.Predictor;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.repository.zoo.Criteria;
import ai.djl.translate.NoBatchifyTranslator;
import ai.djl.translate.TranslateException;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.util.TaskCompletionListener;

/**
 * Scores rows inside Spark's tasks with DJL: one model per executor, one predictor per task, one call per batch.
 *
 * <p>A table has a key (long), columns of ids (long) and columns of numbers (float), in this order. The model takes
 * ids, int64 [batch, columns], and numbers, float32 [batch, columns], and gives scores, float32 [batch].
 */
public final class DjlScore {

    private static final Map<String, Model> MODELS = new ConcurrentHashMap<>();
    private static final StructType SCORED =
            new StructType().add("key", DataTypes.LongType).add("score", DataTypes.FloatType);

    private DjlScore() {}

    /** Returns key and score of every row; each row makes tensors of its own, and DJL's batchifier stacks them. */
    public static Dataset<Row> rowByRow(Dataset<Row> table, String model, int ids, int numbers, int batchRows) {
        MapPartitionsFunction<Row, Row> score =
                rows -> {
                    Predictor<Row, Float> predictor = predictor(model, new RowTranslator(ids, numbers));
                    return new ScoredRows(rows, batchRows, predictor::batchPredict);
                };
        return table.mapPartitions(score, Encoders.row(SCORED));
    }

    /** Returns key and score of every row; a batch is one tensor per input, filled number by number. */
    public static Dataset<Row> batchByBatch(Dataset<Row> table, String model, int ids, int numbers, int batchRows) {
        MapPartitionsFunction<Row, Row> score =
                rows -> {
                    Predictor<List<Row>, List<Float>> predictor =
                            predictor(model, new BatchTranslator(ids, numbers, batchRows));
                    return new ScoredRows(rows, batchRows, predictor::predict);
                };
        return table.mapPartitions(score, Encoders.row(SCORED));
    }

    /** Returns a predictor of the executor's model, closed when the task ends. */
    private static <I, O> Predictor<I, O> predictor(String model, Translator<I, O> translator) {
        Predictor<I, O> predictor = MODELS.computeIfAbsent(model, DjlScore::load).newPredictor(translator);
        TaskCompletionListener close = context -> predictor.close();
        TaskContext.get().addTaskCompletionListener(close);
        return predictor;
    }

    private static Model load(String folder) {
        Criteria<NDList, NDList> criteria =
                Criteria.builder()
                        .setTypes(NDList.class, NDList.class)
                        .optEngine("TensorFlow")
                        .optModelPath(Paths.get(folder))
                        .build();
        try {
            return criteria.loadModel();
        } catch (IOException | ModelException error) {
            throw new IllegalStateException("DJL cannot load the SavedModel in " + folder, error);
        }
    }

    /** Gives the scores of a batch of rows. */
    private interface Scorer {
        List<Float> scores(List<Row> batch) throws TranslateException;
    }

    /** The rows of a partition as keys and scores, computed a batch at a time. */
    private static final class ScoredRows implements Iterator<Row> {
        private final Iterator<Row> rows;
        private final int batchRows;
        private final Scorer scorer;
        private final List<Row> batch = new ArrayList<>();
        private List<Float> scores = List.of();
        private int next;

        ScoredRows(Iterator<Row> rows, int batchRows, Scorer scorer) {
            this.rows = rows;
            this.batchRows = batchRows;
            this.scorer = scorer;
        }

        @Override
        public boolean hasNext() {
            return next < batch.size() || rows.hasNext();
        }

        @Override
        public Row next() {
            if (next == batch.size()) {
                scoreBatch();
            }
            Row scored = RowFactory.create(batch.get(next).getLong(0), scores.get(next));
            next++;
            return scored;
        }

        private void scoreBatch() {
            batch.clear();
            while (batch.size() < batchRows && rows.hasNext()) {
                batch.add(rows.next());
            }
            try {
                scores = scorer.scores(batch);
            } catch (TranslateException error) {
                throw new IllegalStateException("DJL cannot score " + batch.size() + " rows", error);
            }
            next = 0;
        }
    }

    /** Makes two tensors of a row. */
    private static final class RowTranslator implements Translator<Row, Float> {
        private final int ids;
        private final int numbers;

        RowTranslator(int ids, int numbers) {
            this.ids = ids;
            this.numbers = numbers;
        }

        @Override
        public NDList processInput(TranslatorContext context, Row row) {
            long[] rowIds = new long[ids];
            for (int column = 0; column < ids; column++) {
                rowIds[column] = row.getLong(1 + column);
            }
            float[] rowNumbers = new float[numbers];
            for (int column = 0; column < numbers; column++) {
                rowNumbers[column] = row.getFloat(1 + ids + column);
            }
            NDManager manager = context.getNDManager();
            return new NDList(manager.create(rowIds), manager.create(rowNumbers));
        }

        @Override
        public Float processOutput(TranslatorContext context, NDList score) {
            return score.singletonOrThrow().toFloatArray()[0];
        }
    }

    /** Makes two tensors of a batch; its buffers are filled anew for every batch. */
    private static final class BatchTranslator implements NoBatchifyTranslator<List<Row>, List<Float>> {
        private final int ids;
        private final int numbers;
        private final ByteBuffer idBuffer;
        private final ByteBuffer numberBuffer;

        BatchTranslator(int ids, int numbers, int batchRows) {
            this.ids = ids;
            this.numbers = numbers;
            idBuffer = ByteBuffer.allocateDirect(batchRows * ids * Long.BYTES).order(ByteOrder.nativeOrder());
            numberBuffer = ByteBuffer.allocateDirect(batchRows * numbers * Float.BYTES).order(ByteOrder.nativeOrder());
        }

        @Override
        public NDList processInput(TranslatorContext context, List<Row> rows) {
            idBuffer.clear();
            numberBuffer.clear();
            for (Row row : rows) {
                for (int column = 0; column < ids; column++) {
                    idBuffer.putLong(row.getLong(1 + column));
                }
                for (int column = 0; column < numbers; column++) {
                    numberBuffer.putFloat(row.getFloat(1 + ids + column));
                }
            }
            NDManager manager = context.getNDManager();
            return new NDList(
                    manager.create(idBuffer.flip(), new Shape(rows.size(), ids), DataType.INT64),
                    manager.create(numberBuffer.flip(), new Shape(rows.size(), numbers), DataType.FLOAT32));
        }

        @Override
        public List<Float> processOutput(TranslatorContext context, NDList scores) {
            float[] values = scores.singletonOrThrow().toFloatArray();
            List<Float> boxed = new ArrayList<>(values.length);
            for (float value : values) {
                boxed.add(value);
            }
            return boxed;
        }
    }
}
